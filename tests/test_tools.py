"""Solvers: right where that can be enumerated, and harmless whatever they are given."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.engine.grammar import lark
from anabranch.errors import InputError
from anabranch.tools import results
from anabranch.tools.algebra import algebra, compute
from anabranch.tools.isolated import isolated
from anabranch.tools.prover import FORMULA, decide, prover
from anabranch.tools.prover import grammar as logic
from anabranch.tools.python import python
from anabranch.tools.results import Result, Solver
from anabranch.tools.smt import satisfy, smt
from tests.scripted import ChatTokenizer


def solve(solver: Solver, source: str) -> Result:
    return asyncio.run(solver(source))


# ---- python --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("print(6 * 7)", "42"),
        ("x = 6\nx * 7", "42"),
        ("def solution():\n    return 6 * 7", "42"),
        ("answer = 6 * 7", "42"),
        ("print('a')\nprint('b')\n5", "a\nb"),
        ("import math\nprint(math.comb(5, 2))", "10"),
        ("7 / 2", "3.5"),
    ],
)
def test_python_says_what_a_program_comes_to(source: str, value: str) -> None:
    assert solve(python(), source) == Result(value)


def test_python_is_the_same_in_every_run() -> None:
    source = "import random, datetime\nprint(random.random(), datetime.datetime.now())"
    assert solve(python(), source) == solve(python(), source)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("x = 1\nx / 0", "line 2: ZeroDivisionError"),
        ("def f(:", "line 1: "),
        ("x = 1", "no outcome"),
        ("10 ** 5000", "4300 digits"),
        ("def f(): return f()\nf()", "recursion"),
        ("(" * 5000, "nested"),
        ("#" * 20_000, "longer than"),
        ("[0] * 10**9", "memory limit"),
        ("x = 'a'\nwhile True: x += x", "memory limit"),
        ("print('y' * 10**5)", "printed more than 4000"),
        ("'y' * 5000", "longer than 4000"),
        (
            "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
            "limit",
        ),
    ],
)
def test_python_tells_what_is_wrong_and_has_limits(source: str, complaint: str) -> None:
    result = solve(python(seconds=0.2), source)
    assert result.value is None
    assert complaint in result.error
    assert len(result.error) <= results.MAX_VALUE


@pytest.mark.parametrize(
    "source",
    [
        "open('{0}').read()",
        "from pathlib import Path\nPath('{0}').read_text()",
        "import os\nos.listdir('/')",
        "import os\nos.system('cat {0}')",
        "import os\nos.environ['HOME']",
        "import subprocess\nsubprocess.run(['cat', '{0}'])",
        "import socket",
        "import urllib.request",
        "import ctypes",
        "import anabranch",
        "__import__('os').getcwd()",
        "eval(\"__import__('os').listdir('/')\")",
        "().__class__.__base__.__subclasses__()",
        "(lambda: 0).__globals__",
        "print.__self__",
        "breakpoint()",
        "open('{0}', 'w').write('changed')",
    ],
)
def test_python_reaches_nothing(source: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("sesame")
    result = solve(python(), source.format(secret))
    assert result.value is None
    assert "sesame" not in result.error
    assert secret.read_text() == "sesame"


def test_programs_run_side_by_side_and_know_nothing_of_each_other() -> None:
    async def program() -> list[Result]:
        return list(await asyncio.gather(*(python()(f"x = {i}\nx") for i in range(6))))

    assert asyncio.run(program()) == [Result(str(i)) for i in range(6)]
    assert solve(python(), "x").value is None


@pytest.mark.parametrize("solver", [python(seconds=30), algebra(seconds=30)])
def test_a_cancelled_solver_is_gone(solver: Solver) -> None:
    async def program() -> None:
        work = asyncio.create_task(solver("while True: pass"))
        await asyncio.sleep(0.05)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(program())  # an unfinished process would warn here, which is an error


def test_a_package_that_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results.importlib.util, "find_spec", lambda name: None)
    for solver in (python, algebra, prover, smt):
        with pytest.raises(InputError, match=r"pip install anabranch\[reason\]"):
            solver()


# ---- isolation -----------------------------------------------------------------------------------


def _hang(source: str) -> str:
    while True:
        pass


def _hoard(source: str) -> str:
    return str(len(bytearray(1 << 34)))


def _crash(source: str) -> str:
    raise KeyError(source)


def test_a_process_has_limits_and_its_faults_are_words() -> None:
    async def program() -> list[Result]:
        works = ((_hang, 0.2), (_hoard, 20), (_crash, 20))
        return list(await asyncio.gather(*(isolated(w, most)("x") for w, most in works)))

    hung, hoarded, crashed = asyncio.run(program())
    assert "took longer than 0.2 seconds" in hung.error
    assert "memory" in hoarded.error
    assert crashed == Result(None, "KeyError: 'x'")


def test_solvers_answer_through_their_processes() -> None:
    async def program() -> list[Result]:
        asked = [algebra()("2x = 9\nx"), prover()("P\nP"), smt()("(assert false)"), prover()("P(")]
        return list(await asyncio.gather(*asked))

    *good, bad = asyncio.run(program())
    assert good == [Result("9/2"), Result("true"), Result("unsat")]
    assert bad.value is None
    assert "expected" in bad.error


# ---- logic ---------------------------------------------------------------------------------------


Claim = tuple[str, Callable[[Mapping[str, bool]], bool]]
"""A formula, and whether it holds in a world."""

CONNECTIVES: dict[str, Callable[[bool, bool], bool]] = {
    "&": lambda a, b: a and b,
    "|": lambda a, b: a or b,
    "->": lambda a, b: not a or b,
    "<->": lambda a, b: a == b,
}


def negation(claim: Claim) -> Claim:
    text, holds = claim
    return f"-{text}", lambda world: not holds(world)


def pair(left: Claim, sign: str, right: Claim) -> Claim:
    connect = CONNECTIVES[sign]
    return f"({left[0]} {sign} {right[0]})", lambda w: connect(left[1](w), right[1](w))


CLAIMS: st.SearchStrategy[Claim] = st.recursive(
    st.sampled_from("PQR").map(lambda name: (name, lambda world: world[name])),
    lambda inner: (
        inner.map(negation) | st.builds(pair, inner, st.sampled_from(sorted(CONNECTIVES)), inner)
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(premises=st.lists(CLAIMS, max_size=3), conclusion=CLAIMS)
def test_propositions_as_by_truth_tables(premises: list[Claim], conclusion: Claim) -> None:
    worlds = [
        dict(zip("PQR", bits, strict=True)) for bits in itertools.product([False, True], repeat=3)
    ]
    found = {conclusion[1](w) for w in worlds if all(holds(w) for _, holds in premises)}
    source = "\n".join(text for text, _ in [*premises, conclusion])
    if not found:
        with pytest.raises(ValueError, match="contradict"):
            decide(source)
    else:
        verdict = {(True,): "true", (False,): "false"}.get(tuple(found), "unknown")
        assert decide(source) == verdict


@pytest.mark.parametrize("seed", range(20))
def test_rules_and_facts_as_by_forward_chaining(seed: int) -> None:
    rng = random.Random(seed)
    kinds, people = ["Red", "Kind", "Big", "Loud", "Round"], ["ann", "bob"]
    facts = {(rng.choice(kinds), rng.choice(people)) for _ in range(2)}
    rules = [(rng.sample(kinds, 2), rng.choice(kinds)) for _ in range(5)]
    source = [f"{kind}({name})" for kind, name in sorted(facts)]
    source += [f"all x. (({a}(x) & {b}(x)) -> {c}(x))" for (a, b), c in rules]
    more = [(rng.sample(kinds, 1), rng.choice(kinds)) for _ in range(3)]
    source += [f"all x. ({a}(x) -> {c}(x))" for (a,), c in more]
    known = set(facts)
    while (
        new := {
            (head, name)
            for body, head in [*rules, *more]
            for name in people
            if all((kind, name) in known for kind in body)
        }
        - known
    ):
        known |= new
    for kind, name in itertools.product(kinds, people):
        assert decide("\n".join([*source, f"{kind}({name})"])) == (
            "true" if (kind, name) in known else "unknown"
        )


def test_questions_of_logic_are_decided_side_by_side() -> None:
    async def program() -> list[Result]:
        asked = [f"all x. (P{i}(x) -> Q(x))\nP{i}(a)\n{'-' * (i % 2)}Q(a)" for i in range(24)]
        return list(await asyncio.gather(*map(prover(), asked)))

    assert asyncio.run(program()) == [Result("true"), Result("false")] * 12


@pytest.mark.parametrize(
    ("source", "verdict"),
    [
        ("all x. (Cat(x) -> -Dog(x))\nCat(tom)\nDog(tom)", "false"),
        ("all x. Cat(x) -> Pet(x)\nCat(tom)\nPet(tom)", "true"),  # binders reach far
        ("P -> Q -> R\nP\nQ\nR", "true"),
        ("-P | Q & R\nP\nR", "true"),
        ("exists x. (P(x) & Q(x))\nexists y. Q(y)", "true"),
        ("all x. exists y. Likes(x, y)\nexists y. all x. Likes(x, y)", "unknown"),
        ("all x. P(x)\nall x. (all x. P(x) & P(x))", "true"),
    ],
)
def test_first_order_logic(source: str, verdict: str) -> None:
    assert decide(source) == verdict


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("", "no formula"),
        ("P(", "got 'the end'"),
        ("P Q", "unexpected 'Q'"),
        ("P &", "expected 'more'"),
        ("all x P(x)", "expected '.'"),
        ("P(f(x))", "must be a name"),
        ("P(a)\nP(a, b)", "1 arguments in one place, 2 in another"),
        ("(" * 500, "too deeply"),
        ("import os; os", "cannot read"),
        ("all x. exists y. R(x, y)\nall x. -R(x, x)\n"
         "all x. all y. all z. ((R(x, y) & R(y, z)) -> R(x, z))\nP", "cannot be decided"),
    ],
)  # fmt: skip
def test_what_is_no_question_of_logic(source: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        decide(source)


def follows(grammar: str, text: str) -> bool:
    """Whether a text is one of a grammar's, whole."""
    tokenizer: Any = ChatTokenizer()
    try:
        return lark(grammar).start(tokenizer, tokenizer.encode(text)).done()
    except InputError:
        return False


def test_what_the_grammar_lets_a_model_write_is_read() -> None:
    texts = ["P", "-P(a)", "all x. (P(x) & -Q(x, b) -> R(x) | S)", "(P <-> Q)", "exists x. P(x)"]
    for text in texts:
        assert follows(logic(), text)
        FORMULA.read(text)
    for text in ["", "P(", "P Q", "all x P(x)", "P &", "P(f(x))"]:
        assert not follows(logic(), text)
    assert follows(logic(["Cat"], ["tom"]), "Cat(tom)")
    assert not follows(logic(["Cat"], ["tom"]), "Dog(tom)")


# ---- algebra -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("(12 + 30) * 4 - 5", "163"),
        ("-2^2", "-4"),
        ("2^3^2", "512"),
        ("2 ** -1", "1/2"),
        ("2x = 7\nx", "7/2"),
        ("1/2x = 1\nx", "1/2"),
        ("x + y = 10\nx - y = 4\nx * y", "21"),
        ("x^2 = 4\nx", "-2, 2"),
        ("5x^2 = 45\nabs(x)", "3"),
        ("0.1 + 0.2", "0.3"),
        ("1 / 3 + 0.5", "5/6"),
        ("-1.25 * 3", "-3.75"),
        ("sqrt(16) + sqrt(2)", "sqrt(2) + 4"),
        ("17 % 5", "2"),
        ("a = 3\nb = 2a\nb + 1", "7"),
    ],
)
def test_algebra_is_exact(source: str, value: str) -> None:
    assert compute(source) == value


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("", "no expression"),
        ("x = 3", "last line"),
        ("x\n3", "must be an equation"),
        ("x + y = 3\nx", "leave y open"),
        ("x^2 = -4\nx", "no real solution"),
        ("1 / 0", "division by zero"),
        ("__import__('os')", "cannot read"),
        ("x.__class__", "cannot read"),
        ("exec(1)", "no function exec"),
        ("(" * 500, "too deeply"),
    ],
)
def test_what_is_no_algebra(source: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        compute(source)


@given(st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: st.builds("({} {} {})".format, inner, st.sampled_from("+-*/%"), inner),
    max_leaves=5,
))  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_arithmetic_as_by_fractions(source: str) -> None:
    exact = re.sub(r"\d+", r"Fraction(\g<0>)", source)
    try:
        expected = str(eval(exact, {"Fraction": Fraction}))
    except ZeroDivisionError:
        with pytest.raises(ValueError, match="division by zero"):
            compute(source)
    else:
        assert compute(source) == expected


# ---- constraints ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("(declare-const answer Int)(assert (= (* 2 answer) 10))(check-sat)", "5"),
        ("(declare-const answer Real) (assert (= (* 3 answer) 10)) ; a third", "10/3"),
        ("(declare-fun answer () Bool)(assert answer)", "true"),
        ('(declare-const answer String)(assert (= answer "a (b"))', "a (b"),
        ("(declare-const x Int)(assert (and (> x 1) (< x 2)))", "unsat"),
        ("(declare-const |a b| Int)(assert (> |a b| 1))(get-model)", "sat"),
    ],
)
def test_constraints_are_solved(source: str, value: str) -> None:
    assert satisfy(source) == value


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("(declare-const answer Int)(assert (< answer answer))", "no value"),
        ("(assert (= x 1))", "unknown constant x"),
        ("(assert", "not closed"),
        ("assert true", "outside of a command"),
        ('(assert "a)', "cannot read"),
        ('(include "{0}")', "no command 'include'"),
        ("( include |{0}|)", "no command 'include'"),
        ('(echo "x")', "no command 'echo'"),
        ("((assert true))", "no command"),
    ],
)
def test_what_is_no_constraint(source: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("(assert false)")
    with pytest.raises(ValueError, match=complaint):
        satisfy(source.format(tmp_path / "x"))


def test_constraints_write_no_files(tmp_path: Path) -> None:
    target = tmp_path / "out"
    for option in ("regular-output-channel", "diagnostic-output-channel"):
        assert satisfy(f'(set-option :{option} "{target}")(assert true)(get-model)') == "sat"
    assert not target.exists()


@given(st.text(max_size=60))
@settings(max_examples=100, deadline=None)
def test_any_text_is_an_outcome_or_a_complaint(text: str) -> None:
    for work in (compute, decide, satisfy):
        try:
            assert work(text)
        except ValueError:
            continue
