"""Sequential Monte Carlo: thoughts as weighted particles, resampled when few carry the weight."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import cast

from anabranch.backends.philox import philox
from anabranch.program.branch import Branch
from anabranch.program.types import Mark, Problem, Thought
from anabranch.reason.folds import tally
from anabranch.reason.kernels import (
    Advance,
    Select,
    judge_steps,
    population,
    register,
    retire,
    spread,
)
from anabranch.verify.registry import Judge

Weigh = Callable[[list[Thought]], Awaitable[None]]
"""Adds to `logw` of thoughts what their last step is worth beyond its own importance weight."""

Move = Callable[[list[Thought], int], Awaitable[list[Thought]]]
"""Thoughts that have taken so many steps to others that follow the same target."""

POTENTIALS: dict[str, Callable[[float], float]] = {
    "odds": lambda r: r / (1 - r) if r < 1 else math.inf,
    "probability": lambda r: r,
}
"""What a rating is worth as a weight. Odds are what the published code takes."""

MOST = 1e6
"""Largest weight of one step, and one over the smallest: a judge who is sure may be wrong."""

MOVES_SHARE = 1 / 2
"""Most of a budget that goes into moves: the rest is for going on."""

_STREAM = (0xF1, 1)
"""Counter words that no other random number uses."""


def judged(judge: Judge, problem: Problem, potential: str) -> Weigh:
    """Weigh steps by what a judge says of them."""

    async def weigh(thoughts: list[Thought]) -> None:
        before = [len(thought.scores) for thought in thoughts]
        await judge_steps(judge, problem, thoughts)
        for thought, known in zip(thoughts, before, strict=True):
            for rating in thought.scores[known:]:
                worth = POTENTIALS[potential](rating)
                thought.logw += math.log(min(MOST, max(1 / MOST, worth)))

    return weigh


def resampling(
    ess: float,
    weigh: Weigh | None = None,
    *,
    sweep: int = 0,
    keep_first: bool = False,
    move: Move | None = None,
) -> Select:
    """A `select` for `population` that keeps as many thoughts as it is given.

    A thought's `logw` is its weight since it was last resampled: `Step.logw`, which corrects for
    what was sampled from, and what `weigh` adds. When the effective sample size (sum w)² / sum w²
    falls below `ess` of the thoughts, they are resampled systematically and weigh the same again.
    `Thought.total` holds their shares. One that has come to its end takes no more steps, so its
    weight stays as it is; when all have, nothing is resampled any more.

    Args:
        sweep: which random numbers to resample with, for a program that filters several times.
        keep_first: the first thought stays the first, whatever it weighs, and every other place is
            drawn by itself: the conditional filter that particle Gibbs needs.
        move: moves thoughts once they are resampled.
    """
    settled: dict[int, Thought] = {}
    rounds = 0

    async def select(thoughts: list[Thought]) -> list[Thought]:
        nonlocal settled, rounds
        rounds += 1
        if weigh is not None:
            await weigh([t for t in thoughts if id(t) not in settled])
        shares = normalised([t.logw for t in thoughts])
        for thought, share in zip(thoughts, shares, strict=True):
            thought.total = share
        going_on = not all(thought.done for thought in thoughts)
        if going_on and 1 / sum(share * share for share in shares) < ess * len(thoughts):
            seed = thoughts[0].branch.run.seed
            if keep_first:
                draws = (uniform(seed, rounds, sweep, i) for i in range(1, len(thoughts)))
                copies = independent(shares, draws)
                copies[0] += 1
            else:
                copies = systematic(shares, uniform(seed, rounds, sweep))
            thoughts = _resampled(thoughts, copies)
            if move is not None:
                register(thoughts[0].branch.run, thoughts)
                thoughts = await move(thoughts, rounds)
        settled = {id(t): t for t in thoughts if t.done}
        return thoughts

    return select


@dataclass(frozen=True)
class Taken:
    """A step as it was taken: where it ended, what it was worth, the thought after it."""

    end: int
    worth: float
    thought: Thought


@dataclass
class Particle(Thought):
    """A thought that remembers its way.

    Attributes:
        begun: its `logw` before the step it is taking.
        past: its steps so far.
        course: of the reference, the steps it has yet to repeat.
    """

    begun: float = 0.0
    past: tuple[Taken, ...] = ()
    course: tuple[Taken, ...] = ()

    def repeat(self, along: Branch) -> None:
        """Take the next step of the course, where it ended on a branch that has taken it."""
        step, was = self.course[0], self.course[0].thought
        self.branch.drop("its next step is known")
        self.branch = along.fork(at=Mark(along.id, step.end))
        self.logw += step.worth
        self.parent, self.text, self.answer, self.done = was, was.text, was.answer, was.done
        self.scores, self.logp, self.tokens = was.scores, was.logp, was.tokens

    def before(self, first: int) -> Thought:
        """What it was before step `first`."""
        return self.past[first - 1].thought if first else Thought(self.branch)

    def redo(self, first: int, root: Branch) -> Particle:
        """Another one that is what this was before step `first`, and goes on from there.

        Args:
            root: where the first step began.
        """
        if first == 0:
            return Particle(root.fork())
        branch = self.branch.fork(at=Mark(self.branch.id, self.past[first - 1].end))
        was, past = self.before(first), self.past[:first]
        again = Particle(branch, was, scores=was.scores, text=was.text, past=past)
        again.logp, again.tokens = was.logp, was.tokens
        return again

    def remember(self) -> None:
        """Add the step just taken to its past."""
        if self.course:
            taken, self.course = self.course[0], self.course[1:]
        else:
            worth, end = self.logw - self.begun, self.branch.mark.position
            self.parent = replace(self, past=())
            taken = Taken(end, worth, self.parent)
        self.past += (taken,)


def remembering(
    go_on: Advance, rate: Weigh, reference: Particle | None = None
) -> tuple[Advance, Weigh]:
    """Both for particles that remember their way, and repeat steps of a reference's if they have
    a course."""

    async def advance(thought: Thought, limit: int) -> None:
        particle = cast(Particle, thought)
        particle.begun = particle.logw
        if reference is not None and particle.course:
            particle.repeat(reference.branch)
        else:
            await go_on(particle, limit)

    async def weigh(thoughts: list[Thought]) -> None:
        particles = cast(list[Particle], thoughts)
        await rate([particle for particle in particles if not particle.course])
        for particle in particles:
            particle.remember()

    return advance, weigh


def moving(root: Branch, advance: Advance, weigh: Weigh, *, times: int, limit: int) -> Move:
    """Metropolis-Hastings moves of particles, which leave their target as it is.

    A move draws a step that all particles take again, and all after it, as they were taken at
    first. What comes of it is accepted with the ratio of these steps' weights, since the proposal
    and the rest of the path are the same. A particle that had ended before that step stays.

    Args:
        root: where the first step began.
        advance, weigh: as from `remembering`.
        limit: most tokens of one step.
    """

    spent = 0

    async def move(thoughts: list[Thought], rounds: int) -> list[Thought]:
        nonlocal spent
        run, particles = root.run, cast(list[Particle], thoughts)
        for i in range(1, times + 1):
            first = int(uniform(run.seed, rounds, i) * rounds)
            again = {p: q for p, q in enumerate(particles) if len(q.past) > first}
            cost = sum(old.tokens - old.before(first).tokens for old in again.values())
            if spent + cost > MOVES_SHARE * (run.budget.tokens or math.inf):
                run.remark("the budget did not cover all moves")
                break
            paid = run.budget.spent_tokens
            proposed = {place: old.redo(first, root) for place, old in again.items()}
            weigh_all = resampling(0, weigh)

            async def select(new: list[Thought], choose: Select = weigh_all) -> list[Thought]:
                new = await choose(new)
                for thought in new:
                    thought.total = 0.0  # it stands for nothing until it is accepted
                return new

            await population(
                list(proposed.values()), advance, select, limit=limit, rounds=rounds - first
            )
            spent += run.budget.spent_tokens - paid
            after = list(particles)
            for place, new in proposed.items():
                old, point = particles[place], uniform(run.seed, rounds, i, 1 + place)
                gain = _worth(new, first) - _worth(old, first)
                if math.log(point) < gain and not run.budget.over:
                    new.total, new.logw, old.total = old.total, old.logw, 0.0
                    after[place] = new
            retire(run, [*particles, *proposed.values()], after)
            particles = after
        return list(particles)

    return move


def _worth(particle: Particle, first: int) -> float:
    """Logarithm of the weight of its steps from `first` on."""
    return math.fsum(taken.worth for taken in particle.past[first:])


def uniform(seed: int, rounds: int, sweep: int = 0, place: int = 0) -> float:
    """A random number in (0, 1) of its own for every place of every round of every sweep."""
    words = philox(seed, (rounds, sweep << 16 | place, *_STREAM))
    return (words[0] + 0.5) / 2**32


def _resampled(thoughts: list[Thought], copies: list[int]) -> list[Thought]:
    chosen: list[Thought] = []
    for thought, count in zip(thoughts, copies, strict=True):
        chosen += spread(thought, count) if count > 1 else [thought] * count
        thought.total = 0.0  # lest one that is done counts beside its copies
    for thought in chosen:
        thought.total, thought.logw = 1 / len(chosen), 0.0
    return chosen


def systematic(shares: Sequence[float], point: float) -> list[int]:
    """How many copies each gets, as many in all as there are: floor or ceil of their due.

    Systematic resampling (Carpenter, Clifford and Fearnhead 1999): one random number, and points
    at equal distances from it.
    """
    copies, total, taken, count = [], 0.0, 0, len(shares)
    for i, share in enumerate(shares):
        total += share
        upto = count if i == count - 1 else min(count, math.ceil(total * count - point))
        copies.append(max(0, upto - taken))
        taken = max(taken, upto)
    return copies


def independent(shares: Sequence[float], points: Iterable[float]) -> list[int]:
    """How many copies each gets when every random number draws one by itself."""
    borders = list(accumulate(shares))
    copies = [0] * len(shares)
    for point in points:
        copies[min(bisect_right(borders, point * borders[-1]), len(shares) - 1)] += 1
    return copies


def normalised(logs: Sequence[float]) -> list[float]:
    """Shares from logarithms of weights; equal ones when all weigh nothing."""
    top = max(logs)
    if top == -math.inf:
        return [1 / len(logs)] * len(logs)
    weights = [math.exp(log - top) for log in logs]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def by_share(thoughts: Sequence[Thought]) -> list[tuple[str, float]]:
    """The posterior over answers: the sum of the particles' shares."""
    return tally(thoughts, lambda thought: thought.total, sum)
