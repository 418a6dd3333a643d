"""A search that the model narrates itself, in one text, held to its form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from anabranch.program.answers import extract
from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.derived import choose
from anabranch.program.tasks import together
from anabranch.program.types import Mark, Problem, Strategy, Thought
from anabranch.reason.folds import majority
from anabranch.reason.kernels import note_thought
from anabranch.reason.registry import (
    MaxTokens,
    OneOf,
    Rounds,
    Samples,
    Temperature,
    strategy,
)

RATE = "\nThis looks "
VERDICTS = ["bad", "good"]  # the first of equals
AFTER = "\nNext step:\n"
INSTEAD = "\nAnother idea instead of this:\n"
BACK = "\nBack to where this was the last step: {}\nAnother next step:\n"
RESTART = "\nBack to the beginning. Another first step:\n"
CLOSE = "\nThe answer is"


@dataclass
class Place:
    """Steps taken, and how often the next one may still be tried."""

    steps: tuple[str, ...]
    tries: int


@strategy(
    "narrated",
    paper="Zhang et al. 2023, Autonomous tree-search ability of large language models",
    summary="One text that tells a depth-first or breadth-first search; only ideas are free.",
    cost="1 long text",
    use="Small puzzles, on models that follow long forms.",
    fold=majority,
)
def narrated(
    *,
    order: Annotated[str, OneOf(("dfs", "bfs"))] = "dfs",
    fanout: Samples = 3,
    n: Samples = 1,
    rounds: Rounds = 16,
    step_tokens: MaxTokens = 64,
    temperature: Temperature = 0.8,
) -> Strategy:
    """Narrated search: the model sees all it has tried, and what it thought of that.

    Where to go on, what to go back to and when to give up follow from `order`; the model writes
    `rounds` ideas at most, a line each, and says of each whether it looks good or bad, against what
    it would say of no idea at all. A good idea that states an answer ends the search; when all look
    bad, the least bad goes on. Without an answer the text is made to close with one. `n` narrations
    vote.

    Departures: the paper asks for the form in the prompt, which small models do not keep; here it
    is forced, and the model's moves are choices.
    """

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        silent = root.fork()
        await silent.force(RATE)
        thoughts = [Thought(branch) for branch in root.fork(n)]
        root.run.thoughts += thoughts
        await together(narrate(thought, silent, problem) for thought in thoughts)
        silent.drop("its opinions are known")
        return thoughts

    async def narrate(thought: Thought, silent: Branch, problem: Problem) -> None:
        before: Place | None = None
        latest: Place | None = None
        rejected: list[tuple[float, Place]] = []
        places, answered = [Place((), fanout)], False
        for _ in range(rounds):
            if thought.branch.run.budget.over:
                break
            if not places:  # all looked bad: the least bad of them
                if not rejected:
                    break
                least = max(rejected, key=lambda r: r[0])
                rejected.remove(least)
                places = [least[1]]
            place = places[-1 if order == "dfs" else 0]
            lead = "" if before is None else _lead(place, before, latest)
            if lead and not await tell(thought, lead):
                break
            place.tries -= 1
            idea = await write(thought, place.steps)
            here = (*place.steps, idea)
            share = await looks_good(thought, silent) if idea else 0.0
            good = share > 0.5
            answer = extract("\n".join(here), problem, done=False)
            if answer is not None and (good or not answered):
                thought.text, thought.answer, answered = "\n".join(here), answer, True
            if answer is not None and good:
                break
            before, latest = place, None
            places = [p for p in places if p.tries]
            if idea and answer is None:
                latest = Place(here, fanout)
                if good:
                    places.append(latest)
                else:
                    rejected.append((share, latest))
        if not answered and await tell(thought, CLOSE):
            steps = max((p.steps for p in places), key=len, default=())
            end = await write(thought, steps, CLOSE.strip())
            thought.answer = extract(f"{CLOSE} {end}", problem, done=True)
        thought.done = thought.answer is not None
        note_thought(thought)

    async def write(thought: Thought, steps: tuple[str, ...], opening: str = "") -> str:
        """One line of the model's, which stands as the thought's text unless it has an answer."""
        branch, last = thought.branch, thought.branch.last
        begun = len(branch.text)
        try:
            await branch.extend(step_tokens, until="\n", keep=False, temperature=temperature)
        finally:
            step, idea = branch.last, branch.text[begun:].strip()
            if step is not None and step is not last:
                thought.logp, thought.logw = thought.logp + step.logp, thought.logw + step.logw
                thought.tokens += len(step.tokens)
                if step.stop == "end" and branch.live:  # the narration goes on
                    thought.branch = branch.fork(at=Mark(branch.id, step.end.position - 1))
                    branch.drop("its end was taken back")
            if thought.answer is None:
                thought.text = "\n".join([*steps, f"{opening} {idea}".strip()])
        return idea

    async def looks_good(thought: Thought, silent: Branch) -> float:
        if not await tell(thought, RATE):
            return 0.0
        _, shares = await choose(thought.branch, VERDICTS, prior=silent)
        return shares["good"]

    return run


async def tell(thought: Thought, text: str) -> bool:
    """Force a part of the form; whether the budget covered it."""
    return (await thought.branch.force(text)).stop == "forced"


def _lead(place: Place, before: Place, latest: Place | None) -> str:
    """What comes before an idea for a place, after one for another, which may have made a third."""
    if place is latest:
        return AFTER
    if place is before:
        return INSTEAD
    return BACK.format(place.steps[-1]) if place.steps else RESTART
