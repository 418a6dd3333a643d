"""A method in a file of one's own: examples/own_method.py keeps the laws like any other."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from anabranch.cli.main import app
from anabranch.errors import InputError
from anabranch.program.budget import Budget
from anabranch.program.registry import load_file
from anabranch.reason.registry import parse
from tests.test_reason import PROMPT_TOKENS, evidence, solve

FILE = Path(__file__).parent.parent / "examples" / "own_method.py"
TEXTS = {"So the answer is 4.": 0.3, "Answer: 5": 0.7}


def test_the_shortest_solution_wins(own_methods: None) -> None:
    load_file(FILE)
    answer = solve(TEXTS, "shortest(n=16)")
    assert answer.answer == "5"
    assert answer.candidates[0].tokens == min(c.tokens for c in answer.candidates)


def test_it_keeps_the_laws(own_methods: None) -> None:
    load_file(FILE)
    assert evidence(solve(TEXTS, "shortest", seed=3)) == evidence(solve(TEXTS, "shortest", seed=3))
    for tokens in range(PROMPT_TOKENS, PROMPT_TOKENS + 200, 20):
        budget = Budget(tokens)  # `solve` fails if it is overspent
        assert solve(TEXTS, "shortest", budget=budget).answer


def test_the_command_line_knows_it(own_methods: None) -> None:
    told = CliRunner().invoke(app, ["--with", str(FILE), "strategies", "shortest"])
    assert told.exit_code == 0
    assert "the answer of the shortest one" in told.stdout
    assert str(parse("shortest(n=2)")) == "shortest(n=2)"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("def", "SyntaxError"),
        (FILE.read_text().replace('"shortest"', '"vote"'), "of this name already"),
    ],
)
def test_a_file_that_fails_says_so(
    code: str, message: str, tmp_path: Path, own_methods: None
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(code)
    with pytest.raises(InputError, match=message):
        load_file(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="FileNotFoundError"):
        load_file(tmp_path / "none.py")
