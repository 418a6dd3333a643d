"""From a problem to an answer: open the root, run a strategy, fold its candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from anabranch.errors import AnabranchError, UnsupportedError
from anabranch.program.answers import extract, normalise_text
from anabranch.program.branch import Branch
from anabranch.program.registry import Named
from anabranch.program.run import Run
from anabranch.program.types import Answer, Candidate, Problem, Thought
from anabranch.reason.folds import mean_logp
from anabranch.reason.kernels import note_thought
from anabranch.reason.registry import fold_of

NO_ANSWER = "no answer"
"""The answer when not a word was written."""


Reading = Literal["answer", "guess", "text"]
"""Where answers come from: finished thoughts and statements; else what unfinished text seems to
say; else the texts themselves."""


async def think(
    problem: Problem,
    root_of: Callable[[Problem, Run], Branch],
    strategy: Named,
    run: Run,
    *,
    model: str,
) -> Answer:
    """Run a strategy and fold its candidates. Every branch of the run is dropped at the end.

    When the budget ends, or an operation fails after something was written, the best answer so far
    is returned, with a note. A cancelled program raises `CancelledError`; `conclude` then still
    gives the best answer so far.

    Args:
        root_of: opens the branch that asks the problem.
        model: the model's name, for the answer.

    Raises:
        AnabranchError: what `root_of` raises, or a failure before anything was written.
        UnsupportedError: the strategy needs what the engine lacks.
    """
    try:
        root = root_of(problem, run)
        try:
            thoughts = await strategy.make()(problem, root, run.budget)
        except UnsupportedError:
            raise  # not a run that was cut short: a strategy that cannot run here
        except AnabranchError as error:
            if not any(thought.text.strip() for thought in run.thoughts):
                raise
            return conclude(problem, strategy, run, model=model, notes=[f"stopped early: {error}"])
        return conclude(problem, strategy, run, thoughts, model=model)
    finally:
        run.drop_all()


def conclude(
    problem: Problem,
    strategy: Named,
    run: Run,
    thoughts: Sequence[Thought] = (),
    *,
    model: str,
    notes: Sequence[str] = (),
) -> Answer:
    """The answer that candidates amount to; without any, those that the run has so far.

    Confidence is the share of the weight that the answer has, counting thoughts without an answer
    against it.
    """
    thoughts = thoughts or run.thoughts
    for thought in thoughts:
        if not thought.done:
            note_thought(thought)
    thoughts, reading = _read(problem, thoughts)
    notes = (*notes, *run.remarks, *_notes(run, thoughts, reading))
    voices = [thought for thought in thoughts if thought.answer is not None]
    weights = dict(fold_of(strategy)(voices))
    winner = next(iter(weights), None)
    agreeing = [thought for thought in voices if thought.answer == winner]
    voice = max(agreeing, key=lambda t: (t.done, mean_logp(t)), default=None)
    text = voice.text.strip() if voice else ""
    answer = Answer(
        answer=(text if reading == "text" else winner) or NO_ANSWER,
        text=text,
        confidence=weights[winner] * len(voices) / len(thoughts) if winner else 0.0,
        strategy=str(strategy),
        model=model,
        seed=run.seed,
        usage=replace(run.usage, kept_tokens=_own_tokens(agreeing)),
        candidates=tuple(sorted((_record(t, weights) for t in thoughts), key=_rank)),
        notes=notes,
    )
    run.note(
        "answer",
        answer=answer.answer,
        confidence=answer.confidence,
        kept=[thought.branch.id for thought in agreeing],
        notes=notes,
    )
    return answer


def _read(problem: Problem, thoughts: Sequence[Thought]) -> tuple[Sequence[Thought], Reading]:
    """Thoughts with the surest reading that gives any answer, and which that is."""
    if any(thought.answer is not None for thought in thoughts):
        return thoughts, "answer"
    guesses = [replace(t, answer=extract(t.text, problem)) for t in thoughts]
    if any(thought.answer is not None for thought in guesses):
        return guesses, "guess"
    return [replace(t, answer=normalise_text(t.text) or None) for t in thoughts], "text"


def _notes(run: Run, thoughts: Sequence[Thought], reading: Reading) -> list[str]:
    notes = []
    if run.budget.over:
        notes.append("the budget was used up")
    if reading == "guess":
        notes.append("the answer is a guess from unfinished thoughts")
    unfinished = sum(not thought.done for thought in thoughts)
    if unfinished:
        notes.append(f"{unfinished} of {len(thoughts)} thoughts did not come to an end")
    if not any(thought.text.strip() for thought in thoughts):
        notes.append("nothing was written")
    return notes


def _own_tokens(thoughts: Iterable[Thought]) -> int:
    """Tokens sampled on the way to these thoughts, shared stretches counted once."""
    total, seen = 0, set()
    for thought in thoughts:
        node: Thought | None = thought
        while node is not None and id(node) not in seen:
            seen.add(id(node))
            total += node.tokens - (node.parent.tokens if node.parent else 0)
            node = node.parent
    return total


def _record(thought: Thought, weights: Mapping[str, float]) -> Candidate:
    return Candidate(
        branch=thought.branch.id,
        answer=thought.answer,
        text=thought.text,
        weight=weights.get(thought.answer or "", 0.0),
        logp=thought.logp,
        tokens=thought.tokens,
        done=thought.done,
    )


def _rank(candidate: Candidate) -> tuple[float, float]:
    return -candidate.weight, -candidate.logp / max(1, candidate.tokens)
