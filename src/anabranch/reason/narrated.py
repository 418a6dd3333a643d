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
GOOD = 0.5


@dataclass
class Place:
    """Steps taken, and how often the next one may still be tried."""

    steps: tuple[str, ...]
    tries: int


class Places:
    """Where a search may go on.

    Args:
        depth_first: from the newest, else from the oldest.
        fanout: tries of each.
    """

    def __init__(self, depth_first: bool, fanout: int) -> None:
        self._latest, self._fanout = -1 if depth_first else 0, fanout
        self.open = [Place((), fanout)]
        self._rejected: list[tuple[float, Place]] = []

    def take(self) -> Place | None:
        """One try of the next place: when all looked bad, of the least bad."""
        if not self.open and self._rejected:
            least = max(self._rejected, key=lambda rejected: rejected[0])
            self._rejected.remove(least)
            self.open = [least[1]]
        if not self.open:
            return None
        place = self.open[self._latest]
        place.tries -= 1
        return place

    def add(self, steps: tuple[str, ...], share: float) -> Place:
        """A place that looks good with this probability."""
        place = Place(steps, self._fanout)
        if share > GOOD:
            self.open.append(place)
        else:
            self._rejected.append((share, place))
        return place


@dataclass
class Narration:
    """One text, and how it is written on.

    Attributes:
        silent: the same question with an opinion asked of no idea at all.
    """

    thought: Thought
    silent: Branch
    step_tokens: int
    temperature: float

    async def tell(self, text: str) -> bool:
        """Force a part of the form; whether the budget covered it."""
        return (await self.thought.branch.force(text)).stop == "forced"

    async def write(self, steps: tuple[str, ...], opening: str = "") -> str:
        """One line of the model's, which stands as the thought's text unless it has an answer."""
        thought, branch, last = self.thought, self.thought.branch, self.thought.branch.last
        begun = len(branch.text)
        try:
            await branch.extend(
                self.step_tokens, until="\n", keep=False, temperature=self.temperature
            )
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

    async def looks_good(self) -> float:
        """How likely the model says so of its latest idea."""
        if not await self.tell(RATE):
            return 0.0
        _, shares = await choose(self.thought.branch, VERDICTS, prior=self.silent)
        return shares["good"]


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
        await together(
            narrate(Narration(thought, silent, step_tokens, temperature), problem)
            for thought in thoughts
        )
        silent.drop("its opinions are known")
        return thoughts

    async def narrate(narration: Narration, problem: Problem) -> None:
        thought, places = narration.thought, Places(order == "dfs", fanout)
        before: Place | None = None
        latest: Place | None = None
        answered = False
        for _ in range(rounds):
            if thought.branch.run.budget.over or (place := places.take()) is None:
                break
            lead = "" if before is None else _lead(place, before, latest)
            if lead and not await narration.tell(lead):
                break
            idea = await narration.write(place.steps)
            here = (*place.steps, idea)
            share = await narration.looks_good() if idea else 0.0
            answer = extract("\n".join(here), problem, done=False)
            if answer is not None and (share > GOOD or not answered):
                thought.text, thought.answer, answered = "\n".join(here), answer, True
            if answer is not None and share > GOOD:
                break
            places.open = [p for p in places.open if p.tries]
            before = place
            latest = places.add(here, share) if idea and answer is None else None
        if not answered and await narration.tell(CLOSE):
            steps = max((p.steps for p in places.open), key=len, default=())
            end = await narration.write(steps, CLOSE.strip())
            thought.answer = extract(f"{CLOSE} {end}", problem, done=True)
        thought.done = thought.answer is not None
        note_thought(thought)

    return run


def _lead(place: Place, before: Place, latest: Place | None) -> str:
    """What comes before an idea for a place, after one for another, which may have made a third."""
    if place is latest:
        return AFTER
    if place is before:
        return INSTEAD
    return BACK.format(place.steps[-1]) if place.steps else RESTART
