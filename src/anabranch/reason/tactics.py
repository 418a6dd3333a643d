"""The right formalism for each problem, chosen among the solvers there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from anabranch.engine.grammar import lark
from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.derived import score
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.folds import majority
from anabranch.reason.formalise import code, formalise, posed
from anabranch.reason.kernels import sample
from anabranch.reason.linc import linc
from anabranch.reason.pal import pal
from anabranch.reason.registry import MaxTokens, Range, Retries, Samples, Temperature, strategy
from anabranch.reason.turns import begin
from anabranch.reason.vote import vote
from anabranch.tools.algebra import GRAMMAR, algebra
from anabranch.tools.results import Solver
from anabranch.tools.smt import smt

CHOICE = (
    "What is the best way to solve this problem: a program, equations, logic, constraints or "
    "words? Reply with one of these words alone."
)

EQUATIONS = (
    "Write this as equations, one a line, and on the last line the expression that is asked for. "
    "Nothing is to be worked out. For example:\n\nx + 3 = 10\n2 * x"
)
EQUATION = f'start: equation* sum "\\n"?\n{GRAMMAR}'

CONSTRAINTS = (
    "Write this as constraints in SMT-LIB, with declare-const and assert, and the wanted value as "
    "a constant named answer. Reply with the code alone, in one ```smt block."
)


@strategy(
    "tactics",
    paper="Yang et al. 2024, Can LLMs reason in the wild with programs?",
    summary="A program, equations, logic, constraints or words: what suits the problem solves it.",
    cost="1 choice and 1 program or solution",
    use="Problems of all kinds, mixed.",
    fold=majority,
    runs_code=True,
)
def tactics(
    *,
    n: Samples = 4,
    tries: Annotated[int, Range(1, 5)] = 2,
    retries: Retries = 1,
    temperature: Temperature = 0.6,
    max_tokens: MaxTokens = 384,
) -> Strategy:
    """The likeliest of five tactics, when it gives no answer the next, up to `tries`, then words.

    How likely a tactic is without the problem is subtracted, since small models prefer a word
    whatever is asked. Equals are tried in the order of how often models get them right.

    Departures: one tactic for the whole problem, which is not split into parts; no examples of
    tactics, and nothing is trained.
    """
    shared: dict[str, Any] = {"n": n, "temperature": temperature}
    formal: dict[str, Any] = {"retries": retries, "max_tokens": max_tokens, **shared}
    ways: dict[str, Strategy] = {
        "program": pal(fallback="none", **formal),
        "words": vote(max_tokens=max_tokens, **shared),
        "equations": _formal(EQUATIONS, algebra, EQUATION, **formal),
        "logic": linc(fallback="none", **shared),
        "constraints": _formal(CONSTRAINTS, smt, "", **formal),
    }

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        found: list[Thought] = []
        ranked = await _ranked(problem, root, list(ways))
        for way in dict.fromkeys([*ranked[:tries], "words"]):
            found += await ways[way](problem, root, budget)
            root.run.note("tactic", tactic=way)
            if budget.over or any(thought.answer is not None for thought in found):
                break
        return found

    return run


async def _ranked(problem: Problem, root: Branch, ways: list[str]) -> list[str]:
    """The most suitable first; in the order given where the budget does not cover the question."""
    asked, blank = posed(root, problem, CHOICE), begin(root, problem, CHOICE)
    if asked is None or blank is None:
        return ["words", *ways]
    shares = await score(asked, ways, prior=blank)
    return sorted(ways, key=lambda way: -shares[ways.index(way)])


def _formal(
    instruction: str,
    solver: Callable[[], Solver],
    grammar: str,
    *,
    n: int,
    retries: int,
    max_tokens: int,
    temperature: float,
) -> Strategy:
    solve, allow = solver(), lark(grammar) if grammar else None

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        asked = posed(root, problem, instruction)
        if asked is None:
            return await sample(problem, root, n, max_tokens, temperature=temperature)
        translate = code(temperature=temperature, allow=allow)
        starts = [Thought(branch) for branch in asked.fork(n)]
        return await formalise(problem, starts, translate, solve, retries=retries, limit=max_tokens)

    return run
