"""Tasks whose problems come from a file or from another library: nothing in them is trusted."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from anabranch.errors import FileFormatError, InputError
from anabranch.program.answers import extract
from anabranch.tasks import file
from anabranch.tasks.registry import Posed, problems
from anabranch.tools.python import python
from anabranch.verify import equality

GSM8K = {
    "question": "Ada has 48 clips and sells half as many more. How many does she sell in all?",
    "answer": "She sells 48/2 = <<48/2=24>>24 more.\nIn all 48+24 = <<48+24=72>>72.\n#### 72",
}
MATH = {
    "problem": "What is half of $x+1$?",
    "level": "Level 1",
    "type": "Algebra",
    "solution": "Half of it is $\\frac{x+1}{2}$, so \\boxed{\\frac{x+1}{2}}.",
}
HUMANEVAL = {
    "task_id": "Test/0",
    "prompt": "from typing import List\nimport math\n\n\ndef total(xs: List[int]) -> int:\n"
    '    """The sum of the square roots, rounded down."""\n',
    "entry_point": "total",
    "canonical_solution": "    return sum(math.isqrt(x) for x in xs)\n",
    "test": "def check(candidate):\n    assert candidate([4, 9]) == 5\n"
    "    assert candidate([]) == 0\n",
}
MBPP = {
    "text": "Write a function that doubles a number.",
    "code": "def twice(n):\n    return 2 * n",
    "test_list": ["assert twice(2) == 4", "assert twice(0) == 0"],
}
MMLU = {"question": "Which is a colour?", "choices": ["seven", "red", "loud"], "answer": 1}
ARC = {
    "question": "Which is a colour?",
    "choices": {"text": ["seven", "red"], "label": ["1", "2"]},
    "answerKey": "2",
}


def posed_by(path: Path, *rows: Any, more: str = "") -> list[Posed]:
    """The problems of a file with these rows, in any order."""
    path = path / "problems.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return problems(f"file(path={str(path)!r}{more})", len(rows))


def read(posed: Posed, said: str) -> float:
    answer = extract(said, posed.problem)
    return 0.0 if answer is None else posed.score(answer)


@pytest.mark.parametrize("row", [GSM8K, MATH, HUMANEVAL, MBPP, MMLU, ARC])
def test_published_files_drop_in(tmp_path: Path, row: dict[str, Any]) -> None:
    posed = posed_by(tmp_path, row)[0]
    assert read(posed, posed.reference) == 1, posed
    assert read(posed, "The answer is (A) 4711.") == 0
    assert posed.prefix(posed.reference) in (None, 1)


def test_a_place_among_numbers_is_a_place(tmp_path: Path) -> None:
    row = {"question": "What is 1 + 1?", "choices": ["1", "2", "3"]}
    made = posed_by(tmp_path, {**row, "answer": 1}, {**row, "answer": "2"}, {**row, "answer": "B"})
    assert [posed.answer for posed in made] == ["B", "B", "B"]


def test_gsm8k_steps_are_checked(tmp_path: Path) -> None:
    posed = posed_by(tmp_path, GSM8K)[0]
    assert posed.answer == "72"
    assert "<<" not in posed.reference
    assert posed.prefix("48 / 2 = 24\n48 + 24 = 71\nThe answer is 71.") == 1 / 2


def test_formulas_are_compared_as_mathematics(tmp_path: Path) -> None:
    posed = posed_by(tmp_path, MATH)[0]
    assert read(posed, "So it is \\boxed{\\frac{1}{2}(1 + x)}.") == 1
    assert read(posed, "So it is \\boxed{\\frac{x-1}{2}}.") == 0


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("    return sum(math.isqrt(x) for x in xs)", True),
        ("Here:\n```python\ndef total(xs):\n    return sum(map(math.isqrt, xs))\n```\nDone.", True),
        ("```\nfrom math import isqrt\ndef total(xs):\n    return sum(map(isqrt, xs))\n```", True),
        ("    return 5", False),
        ("    return sum(", False),
        ("    while True: pass", False),
        ("    print('every test has passed')\n    raise SystemExit", False),
        ("```python\ndef total(xs):\n    return open('/etc/passwd').read()\n```", False),
    ],
)
def test_code_is_run_against_its_tests(
    tmp_path: Path, said: str, right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "python", lambda: python(seconds=0.5))
    posed = posed_by(tmp_path, HUMANEVAL)[0]
    assert read(posed, said) == right

    async def inside() -> float:
        return read(posed, said)

    if "while" not in said:
        assert asyncio.run(inside()) == right  # also where a loop runs


def test_kinds_can_be_said(tmp_path: Path) -> None:
    row = {"q": "Say seven in letters or digits.", "a": "7|seven"}
    posed = posed_by(tmp_path, row, more=", question='q', answer='a', kind='regex'")[0]
    assert [read(posed, f"The answer is {said}") for said in ("7", "seven", "77")] == [1, 1, 0]
    slow = {"q": "x", "a": "(a+)+$"}
    posed = posed_by(tmp_path, slow, more=", question='q', answer='a', kind='regex'")[0]
    assert read(posed, f"The answer is {'a' * 40}b") == 0
    exact = {"q": "x", "a": "A, b"}
    posed = posed_by(tmp_path, exact, more=", question='q', answer='a'")[0]
    assert [read(posed, f"The answer is {said}.") for said in ("A, b", "a, b")] == [1, 0]


def test_the_seed_orders_a_file_and_every_problem_comes_once(tmp_path: Path) -> None:
    rows = [{"question": f"What is {i}?", "answer": i} for i in range(30)]
    first = posed_by(tmp_path, *rows)
    path = f"file(path={str(tmp_path / 'problems.jsonl')!r})"
    assert {p.answer for p in first} == {str(i) for i in range(30)}
    assert problems(path, 10) == first[:10]
    assert problems(path, 30, seed=1) != first
    with pytest.raises(InputError, match="has not so many problems; got 31; allowed: up to 30"):
        problems(path, 31)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"9" * 10_000, "no JSON"),
        (b"[1]", "no JSON object: got list"),
        (b'{"question": "\xff", "answer": "1"}', "not UTF-8"),
        (b'{"question": "' + b"x" * (5 << 20) + b'", "answer": "1"}', "longer than"),
        (b"{}", "no question under question or problem .* there are no fields"),
        (b'{"question": 7, "answer": "1"}', "no question .* got int"),
        (b'{"question": "x", "answers": "1"}', "no answer .* there are 'question', 'answers'"),
        (b'{"question": "x", "answer": ["1"]}', "no answer .* got list"),
        (b'{"question": "x", "answer": true}', "no answer .* got bool"),
        (b'{"question": "x", "answer": "' + b"y" * 5000 + b'"}', "allowed: up to 4000"),
        (b'{"question": "x", "choices": "AB", "answer": "A"}', "choices is no list"),
        (b'{"question": "x", "choices": ["a"], "answer": "A"}', "1 choices; allowed: 2 to 26"),
        (b'{"question": "x", "choices": ["a", "b"], "answer": "C"}', "none of the choices: 'C'"),
        (b'{"prompt": "x", "test": 5}', "test is no text, or entry_point"),
        (b'{"prompt": "x", "test": "", "entry_point": "f(x)"}', "entry_point is no name"),
        (b'{"text": "x", "test_list": [5]}', "no tests under test"),
        (b'{"text": "x", "test_list": ["' + b"y" * 9000 + b'"]}', "too long"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_line_that_is_no_problem_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"question": "x", "answer": "1"}\n\n' + line + b"\n")
    with pytest.raises(FileFormatError, match=f"p.jsonl: line 3: .*{message}"):
        problems(f"file(path={str(path)!r})", 1)


def test_a_bad_pattern_or_number_is_named(tmp_path: Path) -> None:
    row = {"question": "x", "answer": "(("}
    for kind, message in (("regex", "no regular expression"), ("number", "is no number")):
        with pytest.raises(FileFormatError, match=f"line 1: .*{message}"):
            posed_by(tmp_path, row, more=f", kind={kind!r}")


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"\n \n")
    for path, message in (
        (tmp_path / "none", "cannot be read: No such file"),
        (tmp_path, "cannot be read: Is a directory"),
        (tmp_path / "empty", "there are no problems"),
    ):
        with pytest.raises(InputError, match=message):
            problems(f"file(path={str(path)!r})", 1)
    with pytest.raises(InputError, match="needs its path"):
        problems("file", 1)


# --- reasoning-gym ---


def test_generators_of_reasoning_gym_pose_and_score() -> None:
    pytest.importorskip("reasoning_gym")
    for name in ("chain_sum", "countdown", "binary_matrix", "bf", "sentence_reordering"):
        task = f"gym(dataset={name!r})"
        some = problems(task, 5, seed=1)
        assert some == problems(task, 5, seed=1)
        assert {p.problem.text for p in some}.isdisjoint(
            p.problem.text for p in problems(task, 5, seed=2)
        )
        for posed in some:
            assert read(posed, posed.reference) == 1, posed
            assert read(posed, "The answer is 4711.") < 0.5
    right = next(p for p in problems("gym(dataset='countdown')", 30) if "+" in p.answer)
    assert right.score(f"0 + {right.answer}") < 1  # another number
    assert right.score(f"({right.answer})") == 1  # another way to write it: their scorer's word


def test_settings_and_levels_of_generators() -> None:
    pytest.importorskip("reasoning_gym")
    two = problems("gym(dataset='chain_sum', settings='min_terms=2, max_terms=2')", 10)
    assert all(p.problem.text.count(" + ") + p.problem.text.count(" - ") == 1 for p in two)
    easy, hard = (
        sum(len(p.problem.text) for p in problems(f"gym(level={level})", 20)) for level in (1, 4)
    )
    assert easy < hard


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("dataset='countdwn'", "unknown dataset .* did you mean countdown"),
        ("settings='max_term=3'", "unknown setting of chain_sum; .* did you mean max_terms"),
        ("settings='min_terms=9, max_terms=3'", "must be >= .* allowed: min_terms: int"),
        ("settings='min_terms=open(1)'", "cannot be read; .* allowed: name=value"),
        ("settings='**{}'", "cannot be read|unknown setting"),
        ("dataset='acre', level=2", "has no curriculum"),
        ("dataset='composite'", "Must specify"),
    ],
)
def test_what_generators_refuse(arguments: str, message: str) -> None:
    pytest.importorskip("reasoning_gym")
    with pytest.raises(InputError, match=message):
        problems(f"gym({arguments})", 1)


def test_scorers_that_evaluate_answers_reach_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("reasoning_gym")
    monkeypatch.setattr(equality, "MAX_SECONDS", 1.0)
    target = tmp_path / "written"
    for name in ("spiral_matrix", "countdown"):
        posed = problems(f"gym(dataset={name!r})", 1)[0]
        assert posed.score("[1, 2]") < 1  # the process runs
        for evil in (
            f"open({str(target)!r}, 'w')",
            f'exec("imp" + "ort os; os.system(\'touch {target}\')")',
            f"exec(\"imp\" + \"ort subprocess; subprocess.run(['touch', '{target}'])\")",
            f'exec("imp" + "ort os; os.open(\'{target}\', os.O_CREAT)")',
            f'exec("imp" + "ort pathlib; pathlib.Path(\'{target}\').mkdir()")',
            f"__import__('os').mkdir({str(target)!r})",
            "9**9**9**9",
        ):
            assert posed.score(evil) < 1
            assert not target.exists(), evil
