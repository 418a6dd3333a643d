"""JSON Schema's own test suite against the rule that `json_schema` makes of a schema.

    git clone https://github.com/json-schema-org/JSON-Schema-Test-Suite
    python benchmarks/schemas.py JSON-Schema-Test-Suite
    python benchmarks/schemas.py JSON-Schema-Test-Suite --drafts draft7 --json FILE

Of each schema: is it compiled, or refused with an error; and of those compiled: may a model write
every valid instance, and no invalid one. Rules are driven byte by byte, without a model.

A rule fixes the order of keys and the space between tokens, so an instance counts as accepted if
one way to write it is. Invalid instances are tried in all these ways.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from engine import print_provenance, provenance, write

from anabranch.bench.scripted import ChatTokenizer
from anabranch.engine import grammar
from anabranch.engine.constraints import State
from anabranch.errors import InputError
from anabranch.models.tokenizer import Tokenizer

DRAFTS = ["draft7", "draft2020-12"]
MOST_WAYS = 720
"""Most orders of keys in which an instance is tried."""


@dataclass
class Tally:
    """What became of schemas.

    Attributes:
        compiled, refused: of `schemas`.
        exact: of those compiled, those that accept all valid and reject all invalid instances.
        narrow, wide: of those compiled, those that reject a valid instance, accept an invalid one.
    """

    schemas: int = 0
    refused: int = 0
    compiled: int = 0
    exact: int = 0
    narrow: int = 0
    wide: int = 0

    def add(self, other: Tally) -> None:
        """Count others in."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


@dataclass(frozen=True)
class Finding:
    """One schema that was not exact.

    Attributes:
        why: of a schema that was refused, its error.
        rejected, accepted: instances, wrongly so.
    """

    file: str
    schema: str
    why: str = ""
    rejected: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()


def ways(value: Any) -> Iterator[str]:
    """Ways to write an instance: its objects' keys in every order, 1.0 as 1 too."""
    if isinstance(value, dict):
        for order in itertools.permutations(value):
            for parts in itertools.product(*(tuple(_some(value[key])) for key in order)):
                pairs = (f"{_plain(k)}:{v}" for k, v in zip(order, parts, strict=True))
                yield "{" + ",".join(pairs) + "}"
    elif isinstance(value, list):
        for parts in itertools.product(*(tuple(_some(each)) for each in value)):
            yield "[" + ",".join(parts) + "]"
    else:
        yield _plain(value)
        if isinstance(value, float) and value.is_integer():
            yield _plain(int(value))


def _plain(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _some(value: Any) -> Iterator[str]:
    return itertools.islice(ways(value), MOST_WAYS)


def accepts(start: State, text: str) -> bool:
    """Whether a text may be written from a state on, and end."""
    state = start
    for token in text.encode():
        if not state.test(token):
            return False
        state = state.next(token)
    return state.done()


def judge(group: dict[str, Any], tokenizer: Tokenizer, file: str) -> tuple[Tally, Finding | None]:
    """One schema with its instances, as a file of the suite has them."""
    try:
        start = grammar.json_schema(json.dumps(group["schema"])).start(tokenizer, ())
    except InputError as error:
        why = str(error).partition("\n")[0]
        return Tally(schemas=1, refused=1), Finding(file, group["description"], why)
    rejected, accepted = [], []
    for case in group["tests"]:
        written = any(accepts(start, text) for text in _some(case["data"]))
        if written != case["valid"]:
            (rejected if case["valid"] else accepted).append(case["description"])
    if not rejected and not accepted:
        return Tally(schemas=1, compiled=1, exact=1), None
    tally = Tally(schemas=1, compiled=1, narrow=bool(rejected), wide=bool(accepted))
    found = Finding(file, group["description"], "", tuple(rejected), tuple(accepted))
    return tally, found


def measure(folder: Path) -> tuple[dict[str, Tally], list[Finding]]:
    """Every schema of a draft: counts by file, and what was not exact."""
    tallies: dict[str, Tally] = {}
    findings: list[Finding] = []
    tokenizer: Any = ChatTokenizer()
    for path in sorted(folder.glob("*.json")):
        tally = tallies[path.stem] = Tally()
        for group in json.loads(path.read_text(encoding="utf-8")):
            one, found = judge(group, tokenizer, path.stem)
            tally.add(one)
            findings += [found] if found else []
    return tallies, findings


def table(tallies: dict[str, Tally]) -> str:
    """One line a file, and the sum."""
    whole = Tally()
    for tally in tallies.values():
        whole.add(tally)
    columns = [field.name for field in fields(Tally)]
    lines = [f"{'':28}" + "".join(f"{column:>10}" for column in columns)]
    for name, tally in [*tallies.items(), ("all", whole)]:
        lines.append(f"{name:28}" + "".join(f"{getattr(tally, c):10}" for c in columns))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("suite", type=Path, help="a checkout of JSON-Schema-Test-Suite")
    parser.add_argument("--drafts", nargs="+", default=DRAFTS, help=f"default: {' '.join(DRAFTS)}")
    parser.add_argument("--findings", action="store_true", help="also every schema not exact")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write or print JSON")
    options = parser.parse_args()
    folders = {draft: options.suite / "tests" / draft for draft in options.drafts}
    if missing := [str(folder) for folder in folders.values() if not folder.is_dir()]:
        parser.error(f"no folder {', '.join(missing)}")
    told, drafts = provenance(1), {}
    print_provenance(told)
    for draft, folder in folders.items():
        began = time.perf_counter()
        tallies, findings = measure(folder)
        seconds = time.perf_counter() - began
        print(f"\n{draft}, {seconds:.1f} s\n{table(tallies)}")
        for found in findings if options.findings else ():
            print(f"{found.file}: {found.schema}: {found.why or 'compiled'}")
            for what, cases in ("rejects", found.rejected), ("accepts", found.accepted):
                print("".join(f"    {what} {case}\n" for case in cases), end="")
        files = {name: asdict(tally) for name, tally in tallies.items()}
        drafts[draft] = {"files": files, "findings": [asdict(found) for found in findings]}
    if options.json:
        write(options.json, {**told, "drafts": drafts})


if __name__ == "__main__":
    main()
