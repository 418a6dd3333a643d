"""What programs do with branches, in plain Python over the primitives.

Every temporary branch made here is dropped here, whatever happens. When the budget ends, the result
says so; nothing raises for that.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, overload

import numpy as np

from anabranch.errors import ContextError, InputError, ModelError
from anabranch.program.branch import Branch
from anabranch.program.engine import Engine, Prompt
from anabranch.program.run import Run
from anabranch.program.tasks import together
from anabranch.program.types import Mark, Step

Norm = Literal["sum", "mean"]
"""How the log-probabilities of an option's tokens are put together."""

Pooling = Literal["last", "mean"]

PLACES = 256
"""Places of a prompt whose states are read at the same time."""


@contextmanager
def forks(branch: Branch, n: int, reason: str) -> Iterator[list[Branch]]:
    """Children that live as long as the `with` block."""
    children = branch.fork(n)
    try:
        yield children
    finally:
        for child in children:
            child.drop(reason)


async def score(
    branch: Branch,
    options: Sequence[str],
    *,
    norm: Norm = "sum",
    prior: Branch | None = None,
) -> list[float]:
    """Log-probability of each option as the continuation of a branch, in nats. Changes nothing.

    Args:
        norm: "sum" compares whole texts, "mean" their average token.
        prior: a branch that lacks the question: what the options are worth there is subtracted
            (domain-conditional PMI, Holtzman et al. 2021).

    Returns:
        One score per option; all minus infinity when the budget does not cover every option, since
        scoring only some of them would favour those.

    Raises:
        InputError: no options, an empty one, or an unknown norm.
        UnsupportedError: the engine cannot score given text.
    """
    _check_options(options)
    if norm not in ("sum", "mean"):
        raise InputError("unknown norm", got=norm, allowed="sum, mean")
    branch.engine.require("scoring")
    scores = await _likelihoods(branch, options, norm)
    if prior is not None:
        base = await _likelihoods(prior, options, norm)
        scores = [s - b for s, b in zip(scores, base, strict=True)]
    if any(math.isnan(s) for s in scores):
        scores = [-math.inf] * len(scores)
    branch.run.note("score", branch=branch.id, options=list(options), scores=scores)
    return scores


async def choose(
    branch: Branch,
    options: Sequence[str],
    *,
    norm: Norm = "sum",
    prior: Branch | None = None,
) -> tuple[str, dict[str, float]]:
    """Append the option that scores highest, the first of equals.

    Returns:
        The option, and every option's share: the softmax of the scores.

    Raises:
        InputError, ContextError: as `score` and `force`.
    """
    shares = _softmax(await score(branch, options, norm=norm, prior=prior))
    best = options[shares.index(max(shares))]
    branch.run.note("choose", branch=branch.id, choice=best)
    await branch.force(best)
    return best, dict(zip(options, shares, strict=True))


@overload
async def probe(branch: Branch, question: str) -> str: ...
@overload
async def probe(
    branch: Branch, question: str, options: None = None, *, limit: int = ..., **sampling: Any
) -> str: ...
@overload
async def probe(
    branch: Branch, question: str, options: Sequence[str], *, norm: Norm = ...
) -> dict[str, float]: ...
async def probe(
    branch: Branch,
    question: str,
    options: Sequence[str] | None = None,
    *,
    norm: Norm = "sum",
    limit: int = 64,
    **sampling: Any,
) -> str | dict[str, float]:
    """Ask about a branch without changing it.

    Returns:
        With options, the share of each; else up to `limit` tokens of reply, most likely first if
        `sampling` (as in `extend`) does not say otherwise.
    """
    with forks(branch, 1, "probe") as (child,):
        await child.force(question)
        if options is not None:
            shares = _softmax(await score(child, options, norm=norm))
            return dict(zip(options, shares, strict=True))
        step = await child.extend(limit, **{"temperature": 0.0, **sampling})
        return step.text


async def join(
    branches: Sequence[Branch],
    render: Callable[[list[str]], str],
    *,
    at: Mark | None = None,
) -> Branch:
    """A new branch from where others parted, that goes on with a text made of theirs.

    Args:
        render: given each branch's text since they parted, the text to append.
        at: where to start instead, a mark on the path of the first branch.

    Returns:
        The new branch; its `last` step has stop="budget" when the budget did not cover the text.

    Raises:
        InputError: no branches, or without a common ancestor.
        ContextError: the text does not fit.
    """
    if not branches:
        raise InputError("nothing to join", fix="give at least one branch")
    mark = at or _parting(branches)
    texts = [b.engine.text_of(b.tokens[mark.position :]) for b in branches]
    joined = branches[0].fork(at=mark)
    try:
        await joined.force(render(texts))
    except BaseException:
        joined.drop("join failed")
        raise
    joined.run.note("join", branch=joined.id, parents=[branch.id for branch in branches])
    return joined


async def say(branch: Branch, text: str, *, role: str = "user") -> Step:
    """Append a turn of a conversation, in the model's chat template, ready for the reply.

    The turn before is closed first if the model has not closed it itself. Nothing of the
    conversation so far is computed again.

    Raises:
        ContextError: the turn does not fit.
        InputError, ModelError: the template refuses it.
    """
    tokenizer = branch.engine.tokenizer
    # The template says what goes between two turns; which turns does not matter.
    before = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    closed = tokenizer.chat(before, generate=False)
    asked = tokenizer.chat([*before, {"role": role, "content": text}])
    if asked[: len(closed)] != closed:
        raise InputError(
            "this model's chat template rewrites earlier turns, so a conversation cannot go on",
            fix="open the whole conversation anew",
        )
    ends = [i for i, token in enumerate(closed) if token in tokenizer.ends]
    closing = closed[ends[-1] :] if ends else []
    if branch.tokens[-1] in tokenizer.ends:
        closing = closing[1:]
    return await branch.force([*closing, *asked[len(closed) :]])


async def turn(branch: Branch, text: str) -> bool:
    """`say`, or plain text where the template cannot go on; whether budget and context had room."""
    try:
        try:
            step = await say(branch, text)
        except ContextError:
            raise
        except (InputError, ModelError):
            branch.run.remark("this model's template takes no further turns: they are plain text")
            step = await branch.force(f"\n\n{text}\n\n")
    except ContextError:
        return False
    return step.stop == "forced"


async def fill(
    branch: Branch,
    template: str,
    options: Mapping[str, Sequence[str]] | None = None,
    *,
    limit: int = 64,
    norm: Norm = "sum",
    **sampling: Any,
) -> dict[str, str]:
    """Write a template: its text is forced, its holes `{name}` are filled by the model.

    A hole with options takes the best of them; any other is sampled until the text that follows
    it, or that text's first line break, or for `limit` tokens. `{{` and `}}` stand for braces.

    Returns:
        What every hole got, stripped of surrounding space. Holes that the budget did not reach
        are missing.

    Raises:
        InputError: a hole without a name, a name used twice, or options for no hole.
    """
    pieces = _pieces(template)
    names = [name for _, name in pieces if name is not None]
    options = options or {}
    if len(set(names)) < len(names) or not all(name.isidentifier() for name in names):
        raise InputError("holes need names of their own", got=names, allowed="{name}, once each")
    if strange := set(options) - set(names):
        raise InputError("options for a hole that is not there", got=sorted(strange))
    filled: dict[str, str] = {}
    for i, (text, name) in enumerate(pieces):
        if text and (await branch.force(text)).stop == "budget":
            break
        if name is None:
            continue
        if name in options:
            filled[name], _ = await choose(branch, options[name], norm=norm)
            continue
        after = pieces[i + 1][0] if i + 1 < len(pieces) else ""
        until = after.partition("\n")[0] or "\n"
        step = await branch.extend(limit, until=until, keep=False, **sampling)
        filled[name] = step.text.strip()
        if step.stop == "budget":
            break
    return filled


async def embed(
    engine: Engine,
    prompt: Prompt,
    *,
    pooling: Pooling = "last",
    run: Run | None = None,
) -> Any:
    """`[hidden]` float32: what the final normalised states of a prompt amount to.

    Args:
        pooling: the state after its last token, or the mean over all of its tokens.
        run: the program that pays for it; default: nobody.

    Raises:
        InputError: its budget does not cover the prompt.
    """
    branch = engine.open(prompt, run=run)
    try:
        if pooling == "last":
            return (await branch.peek(1, hidden=True)).hidden
        total: Any = 0.0
        end = branch.mark.position
        for first in range(1, end + 1, PLACES):
            for state in await _states(branch, range(first, min(end + 1, first + PLACES))):
                total = total + state
        return total / np.float32(end)
    finally:
        branch.drop("embed")


async def _states(branch: Branch, positions: Sequence[int]) -> list[Any]:
    """The final normalised states at places of a branch's path, read side by side."""
    children = [branch.fork(at=Mark(branch.id, position)) for position in positions]
    try:
        return [each.hidden for each in await together(c.peek(1, hidden=True) for c in children)]
    finally:
        for child in children:
            child.drop("embed")


async def _likelihoods(branch: Branch, options: Sequence[str], norm: Norm) -> list[float]:
    """Per option, the log-probability of its tokens; NaN where the budget ended."""
    with forks(branch, len(options), "score") as children:
        steps = await together(
            child.force(option) for child, option in zip(children, options, strict=True)
        )
    return [_likelihood(step, norm) for step in steps]


def _likelihood(step: Step, norm: Norm) -> float:
    if step.stop != "forced":
        return math.nan
    return step.logp / (len(step.tokens) if norm == "mean" else 1)


def _check_options(options: Sequence[str]) -> None:
    if isinstance(options, str) or not options or not all(options):
        raise InputError("options are not a list of texts", got=options, allowed="one or more")
    if len(set(options)) < len(options):
        raise InputError("an option occurs twice", got=options)


def _softmax(scores: Sequence[float]) -> list[float]:
    """Shares that sum to 1; equal ones when no score is finite."""
    top = max(scores)
    weights = [1.0 if top == -math.inf else math.exp(score - top) for score in scores]
    return [weight / sum(weights) for weight in weights]


def _parting(branches: Sequence[Branch]) -> Mark:
    """The last place that all branches have in common."""
    lines = [_line(branch) for branch in branches]
    shared = dict(lines[0])
    for line in lines[1:]:
        found = dict(line)
        shared = {n: min(p, found[n]) for n, p in shared.items() if n in found}
    if not shared:
        raise InputError("the branches share no ancestor", got=[branch.id for branch in branches])
    return max((Mark(name, position) for name, position in shared.items()), key=_depth)


def _line(branch: Branch) -> list[tuple[str, int]]:
    """A branch and its ancestors, each with the position where the path leaves it."""
    line, position = [(branch.id, branch.mark.position)], branch.mark.position
    while branch.parent is not None:
        position = min(position, branch.origin)
        branch = branch.parent
        line.append((branch.id, position))
    return line


def _depth(mark: Mark) -> tuple[int, int]:
    return mark.position, mark.branch.count(".")


def _pieces(template: str) -> list[tuple[str, str | None]]:
    """Each text of a template with the hole that follows it, or None after the last."""
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InputError(f"the template is broken: {error}", got=template) from error
    if any(spec or conversion for _, _, spec, conversion in pieces):
        raise InputError("a hole has more than a name", got=template, allowed="{name}")
    return [(text, name) for text, name, _, _ in pieces]
