"""Logic by a prover: the model only translates."""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated

from anabranch.engine.grammar import lark
from anabranch.program.answers import letters, normalise
from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.folds import majority
from anabranch.reason.formalise import CHAIN_TOKENS, Fallback, Translate, formalise
from anabranch.reason.kernels import sample, write
from anabranch.reason.registry import MaxTokens, OneOf, Samples, Temperature, TopP, strategy
from anabranch.reason.turns import ask, begin
from anabranch.tools.prover import grammar, prover

INSTRUCTION = "Translate each sentence into first-order logic."
SHOWN = [
    (f"{INSTRUCTION}\n\nEvery cat is an animal.", "all x. (Cat(x) -> Animal(x))"),
    ("Each bird is not heavy.", "all x. (Bird(x) -> -Heavy(x))"),
    ("Tom is a cat.", "Cat(tom)"),
    ("If someone is big and kind then they like Tom.", "all x. (Big(x) & Kind(x) -> Like(x, tom))"),
    ("Ann is green.", "Green(ann)"),
    ("Tom is not heavy.", "-Heavy(tom)"),
]

_ENDS = re.compile(r"(?<=[.?!])\s+|\s*\n\s*")
_ASKS = re.compile(r"^(?:true or false|yes or no|true, false,? or \w+)\W+", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]{1,30}")
# Words that stand for no thing or property.
_IDLE = frozenset(
    _WORD.findall(
        "a all an and are be both each every everyone everything exists false if in is it no not "
        "of or some someone something that the then they this to true unknown who x y z"
    )
)
_SAID = {
    "true": ("true", "yes"),
    "false": ("false", "no"),
    "unknown": ("unknown", "uncertain", "neither", "cannot be determined"),
}
MAX_SENTENCES = 64


@strategy(
    "linc",
    paper="Olausson et al. 2023, LINC: Combining language models with first-order logic provers",
    summary="The text is translated into logic, a prover decides, and translations vote.",
    cost="n short translations; a prover of no tokens",
    use="Deduction from stated facts and rules.",
    fold=majority,
)
def linc(
    *,
    n: Samples = 5,
    names: Annotated[str, OneOf(("words", "any"))] = "words",
    temperature: Temperature = 0.6,
    top_p: TopP = 1.0,
    fallback: Fallback = "vote",
    max_tokens: MaxTokens = 48,
) -> Strategy:
    """One sentence after the other becomes a formula of up to `max_tokens`; the last one is asked.

    Departures: a grammar keeps every formula readable, with the problem's own words as its only
    names unless `names` is "any"; z3 instead of Prover9; contradictory premises are a failed
    translation, since everything follows from them, and so is a conclusion that stays open when
    the problem does not speak of that. When no translation is left, as many chains of thought
    vote; with `fallback="none"` the translations abstain.
    """
    solve = prover()

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        said = sentences(problem)
        asked = begin(root, problem, said[0], SHOWN)
        sampling = {"temperature": temperature, "top_p": top_p}
        chains = partial(sample, problem, root, n, CHAIN_TOKENS, **sampling)
        if asked is None:
            return await chains()
        words = sorted(set(_WORD.findall(problem.text))) if names == "words" else []
        rule = lark(grammar(*vocabulary(words)))
        return await formalise(
            problem,
            [Thought(branch) for branch in asked.fork(n)],
            _translation(said, allow=rule, **sampling),
            solve,
            retries=0,
            limit=max_tokens * len(said),
            read=lambda verdict: spoken(verdict, problem),
            otherwise=chains if fallback == "vote" else None,
        )

    return run


def _translation(said: list[str], **sampling: object) -> Translate:
    async def translate(thought: Thought, limit: int) -> str | None:
        formulas: list[str] = []
        for sentence in said:
            if formulas and not await ask(thought.branch, sentence):
                return None
            skip = len(thought.branch.text)
            await write(thought, max(1, limit // len(said)), skip=skip, **sampling)
            formulas.append(thought.text.strip())
            thought.text = "\n".join(formulas)
            if thought.branch.last is None or thought.branch.last.stop not in ("end", "complete"):
                return None
        return thought.text

    return translate


def sentences(problem: Problem) -> list[str]:
    """A problem's sentences, what is asked as the last; never none."""
    found = [s.strip() for s in _ENDS.split(problem.text) if s.strip()][-MAX_SENTENCES:]
    return [_ASKS.sub("", s) or s for s in found] or [problem.text]


def vocabulary(words: list[str]) -> tuple[list[str], list[str]]:
    """Predicates and terms that words may stand for; none, for any, when there are no words."""
    if not words:
        return [], []
    plain = [word for word in words if word.casefold() not in _IDLE]
    return (
        sorted({word.capitalize() for word in plain}),
        sorted({word.casefold() for word in plain} | {"x", "y", "z"}),
    )


def spoken(verdict: str, problem: Problem) -> str | None:
    """A verdict in the words of the problem: its choices, yes and no where it asks, or as it is.

    None where the problem leaves no room for it: to be unknown, when it is true or false.
    """
    words, text = _SAID[verdict], problem.text.casefold()
    if letters(problem):
        return next((found for w in words if (found := normalise(w, problem))), None)
    if verdict == "unknown":
        return words[0] if any(word in text for word in words) else None
    return words[1] if text.rstrip().endswith("?") and "true" not in text else words[0]
