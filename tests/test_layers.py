"""The layers of docs/architecture.md, enforced: nothing imports upwards, not even for types."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import anabranch

LAYERS = [
    "errors machine",
    "backends",
    "models",
    "engine",
    "program",
    "verify tools remote",
    "reason",
    "tasks",
    "lm",
    "bench serve",
    "cli",
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names.split()}
PACKAGE = Path(anabranch.__file__).parent


def imports(path: Path) -> set[str]:
    """The layers a file imports from, wherever in the file it does so."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "anabranch" and len(parts) > 1 and parts[1] in RANK:
                found.add(parts[1])
    return found


def test_no_layer_imports_from_one_above() -> None:
    files = [p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.stem in RANK]
    assert len(files) > 20
    for path in files:
        layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        above = {name for name in imports(path) if RANK[name] > RANK[layer]}
        assert not above, f"{path.relative_to(PACKAGE)} imports from {above}"


def test_every_folder_has_a_layer() -> None:
    folders = {p.name for p in PACKAGE.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert folders <= RANK.keys()


def test_importing_the_package_loads_no_backend_and_no_model() -> None:
    code = (
        "import sys, anabranch; "
        "print([m for m in sys.modules if m.startswith('anabranch.') or m == 'numpy'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
