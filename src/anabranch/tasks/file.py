"""Problems from a file, one JSON object a line, under the names that well-known sets use."""

from __future__ import annotations

import asyncio
import functools
import random
import re
import string
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

from anabranch.errors import InputError
from anabranch.program.answers import MAX_EXACT, normalise_number, stated
from anabranch.program.jsonl import Line, read_lines
from anabranch.program.registry import OneOf, Text
from anabranch.program.types import Problem
from anabranch.tasks.registry import Posed, Source, task
from anabranch.tasks.steps import calculated
from anabranch.tools.python import python
from anabranch.tools.results import MAX_SOURCE, Result
from anabranch.verify.equality import symbolic

QUESTIONS = ("question", "problem", "prompt", "text", "input")
ANSWERS = (
    "answer",
    "answerKey",
    "target",
    "gold",
    "label",
    "solution",
    "canonical_solution",
    "code",
)
"""Where questions and answers stand, the first that is there."""

_KINDS = ("auto", "number", "choice", "exact", "formula", "regex", "code")
_PASSED = "every test has passed"
_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_SUM = re.compile(r"<<[^<>\n]{0,80}=([^<>\n]{1,40})>>")
_FIX = "name another field by question='...' or answer='...', or repair the line"


@task(
    "file",
    paper="Cobbe et al. 2021 (GSM8K); Hendrycks et al. 2021 (MATH); Chen et al. 2021 (HumanEval): "
    "their files as published",
    summary="The problems of a file: file(path='gsm8k.jsonl'). GSM8K, MATH, HumanEval drop in.",
)
def file(
    *,
    path: Annotated[str, Text(500)] = "",
    kind: Annotated[str, OneOf(_KINDS)] = "auto",
    question: Annotated[str, Text(60)] = "",
    answer: Annotated[str, Text(60)] = "",
) -> Source:
    """A JSON object a line. The question stands under `question`, `problem`, `prompt`, `text` or
    `input`, the answer under `answer`, `answerKey`, `target`, `gold`, `label` or `solution`.

    Answers are numbers ("72", or GSM8K's text with "#### 72"), choices (a letter, place or text,
    with the options under `choices`), exact texts, formulas (also MATH's solution with its box;
    compared as mathematics), regular expressions that an answer must match as a whole, or code
    (`prompt`, `test` and `entry_point` as in HumanEval, or `test_list` as in MBPP), which passes if
    its tests do. Code and regular expressions run where they can reach nothing. The kind "auto"
    is decided line by line. The seed decides the order."""
    if not path:
        raise InputError("a file of problems needs its path", allowed="file(path='problems.jsonl')")
    lines = read_lines(path, "problems", _FIX)
    all_ = [_posed(line, kind, question, answer) for line in lines]

    @functools.lru_cache(maxsize=8)
    def order(seed: int) -> list[int]:
        return random.Random(f"order {seed}").sample(range(len(all_)), len(all_))

    return Source(lambda seed, place: all_[order(seed)[place]], len(all_))


def _posed(line: Line, kind: str, question: str, answer: str) -> Posed:
    text, found = _text(line, (question,) if question else QUESTIONS), kind
    if kind == "code" or (kind == "auto" and ({"test", "test_list"} & line.keys())):
        return _code(line, text)
    names = (answer,) if answer else ANSWERS
    gold = next((line[name] for name in names if line.get(name) is not None), None)
    if isinstance(gold, bool) or not isinstance(gold, str | int | float) or str(gold).strip() == "":
        got = f"got {type(gold).__name__}" if gold is not None else f"there are {_names(line)}"
        raise line.fault(f"no answer under {' or '.join(names)} (text or number); {got}")
    told = str(gold).strip()
    if kind == "choice" or (kind == "auto" and line.get("choices") is not None):
        return _choice(line, text, gold)
    boxed = next(stated(told), "").strip() if "\\boxed" in told or "####" in told else ""
    if kind == "auto":
        found = "formula" if "\\boxed" in told or "level" in line else "exact"
        if normalise_number(boxed or told) is not None and "\\boxed" not in told:
            found = "number"
    steps = tuple(told.rpartition("####")[0].strip().splitlines()) if "####" in told else ()
    return _read(line, Problem(text), found, boxed or told, steps)


def _read(line: Line, problem: Problem, kind: str, gold: str, steps: tuple[str, ...]) -> Posed:
    if kind == "number":
        value = normalise_number(gold)
        if value is None:
            raise line.fault(f"the answer is no number: {gold[:60]!r}")
        # GSM8K writes its calculations between << and >>.
        values = [normalise_number(v) for v in _SUM.findall("\n".join(steps))]
        follow = calculated(values) if values and None not in values else None
        shown = tuple(_SUM.sub("", step) for step in steps)
        return Posed(Problem(problem.text, kind="number"), value, shown, follow=follow)
    problem = Problem(problem.text, kind="exact")
    if len(gold) > MAX_EXACT:
        raise line.fault(f"an answer of {len(gold)} characters; allowed: up to {MAX_EXACT}")
    if kind == "formula":
        return Posed(problem, gold, steps, grade=lambda answer: float(_equal(answer, gold)))
    if kind == "regex":
        try:
            re.compile(gold)
        except (re.error, OverflowError, RecursionError) as error:
            raise line.fault(f"no regular expression: {error}; got {gold[:60]!r}") from None
        return Posed(problem, "", grade=lambda answer: float(_matches(gold, answer)))
    return Posed(problem, gold, steps)


def _equal(answer: str, gold: str) -> bool:
    return symbolic(answer.strip("$"), gold.strip("$"))


def _choice(line: Line, text: str, raw: str | int | float) -> Posed:
    options: Any = line.get("choices")
    labels: Any = None
    if isinstance(options, dict):  # as in ARC
        options, labels = options.get("text"), options.get("label")
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise line.fault("choices is no list of texts, nor an object with the lists text and label")
    letters = string.ascii_uppercase[: len(options)]
    if not 2 <= len(options) <= 26:
        raise line.fault(f"{len(options)} choices; allowed: 2 to 26")
    known = labels if isinstance(labels, list) and len(labels) == len(options) else list(letters)
    gold = str(raw).strip()
    if isinstance(raw, int) and known == list(letters) and 0 <= raw < len(options):
        place = raw  # as in MMLU, from 0; the options may be numbers themselves
    elif gold in known:
        place = known.index(gold)
    elif gold in options:
        place = options.index(gold)
    elif gold.isascii() and gold.isdecimal() and int(gold[:9]) < len(options):
        place = int(gold[:9])
    else:
        raise line.fault(f"the answer is none of the choices: {gold[:60]!r}")
    return Posed(Problem(text, kind="choice", choices=tuple(options)), letters[place])


def _code(line: Line, text: str) -> Posed:
    tests, entry = line.get("test"), line.get("entry_point")
    if tests is None:
        listed = line.get("test_list")
        if not isinstance(listed, list) or not all(isinstance(test, str) for test in listed):
            raise line.fault("no tests under test (text) or test_list (a list of texts)")
        tests = "\n".join(listed)
    elif not isinstance(tests, str) or not (isinstance(entry, str) and entry.isidentifier()):
        raise line.fault("test is no text, or entry_point is no name of a function")
    else:
        tests = f"{tests}\ncheck({entry})"
    if len(text) + len(tests) > MAX_SOURCE // 2:
        raise line.fault(f"tests and prompt of {len(text) + len(tests)} characters are too long")
    prompt = text if entry else ""
    gold = next((line[n] for n in ("canonical_solution", "code") if line.get(n)), "")
    if not isinstance(gold, str):
        raise line.fault(f"the solution is no text: got {type(gold).__name__}")
    if entry:
        text = f"Complete this function.\n\n```python\n{text.rstrip()}\n```"
    else:
        text = f"{text}\nYour code must pass these tests:\n\n```python\n{tests}\n```"
    system = "Answer with the whole code in one block that begins with ```python."
    problem = Problem(text, system=system, kind="whole")
    answer = f"```python\n{prompt}{gold}\n```" if gold else ""
    return Posed(problem, answer, grade=lambda said: float(_passes(said, prompt, entry, tests)))


def _passes(said: str, prompt: str, entry: str | None, tests: str) -> bool:
    """Whether code passes its tests, be it a whole function or what follows the prompt."""
    fenced = _FENCE.findall(said)
    code = fenced[-1] if fenced else said
    if not code.strip():
        return False
    if entry and re.search(rf"^\s{{0,8}}def\s+{entry}\b", code, re.MULTILINE):
        code = f"{prompt.rstrip()}\n    pass\n\n{code}"  # what the prompt imports is there too
    else:
        code = prompt + code
    done = _run(f"{code}\n\n{tests}\nprint({_PASSED!r})")
    return done.value is not None and done.value.endswith(_PASSED)


def _matches(pattern: str, answer: str) -> bool:
    # The pattern is a stranger's: it may take for ever.
    source = f"import re\nprint(re.fullmatch({pattern!r}, {answer!r}) is not None)"
    return _run(source).value == "True"


def _run(source: str) -> Result:
    """What becomes of a program, also where an event loop runs already."""

    async def run() -> Result:
        return await python()(source)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, run()).result()


def _text(line: Line, names: tuple[str, ...]) -> str:
    text = next((line[name] for name in names if line.get(name) is not None), None)
    if not isinstance(text, str) or not text.strip():
        got = f"got {type(text).__name__}" if text is not None else f"there are {_names(line)}"
        raise line.fault(f"no question under {' or '.join(names)} (text); {got}")
    return text


def _names(line: Line) -> str:
    return ", ".join(repr(str(name)[:30]) for name in list(line)[:10]) or "no fields"
