"""Particle Gibbs over reasoning steps: filters that each go round the last one's trajectory."""

from __future__ import annotations

from typing import Annotated, cast

from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.kernels import population, sampler
from anabranch.reason.registry import (
    JudgedBy,
    MaxTokens,
    OneOf,
    Range,
    Rounds,
    Steps,
    Temperature,
    boundary,
    needs_partial,
    strategy,
)
from anabranch.reason.resample import (
    POTENTIALS,
    Particle,
    by_share,
    independent,
    judged,
    remembering,
    resampling,
    uniform,
)


@strategy(
    "gibbs",
    paper="Andrieu, Doucet and Holenstein 2010, Particle Markov chain Monte Carlo methods, 2.4.3; "
    "for reasoning: Puri et al. 2025, A probabilistic inference approach to inference-time scaling",
    summary="Sweeps of a small particle filter, each with one trajectory kept from the last.",
    cost="sweeps x n solutions, most of their steps shared",
    use="Instead of particles, when memory bounds n but time does not.",
    fold=by_share,
)
def gibbs(
    *,
    n: Annotated[int, Range(2, 1024)] = 8,
    sweeps: Annotated[int, Range(1, 1024)] = 4,
    judge: JudgedBy = "likelihood",
    potential: Annotated[str, OneOf(POTENTIALS)] = "odds",
    ess: Annotated[float, Range(0, 1)] = 1.0,
    step: Steps = "line",
    step_tokens: MaxTokens = 96,
    rounds: Rounds = 24,
    temperature: Temperature = 1.0,
) -> Strategy:
    """The posterior of `particles`, without the bias that few particles have, given many sweeps.

    The reference costs no tokens: its steps are taken again by forking where they ended. It is
    rated once, when it is new.

    Departures: the answer has the mean of its shares over all sweeps, the first included, instead
    of one trajectory's vote a sweep; no sweep is begun that the budget would not cover if it costs
    what the dearest so far has.
    """
    needs_partial("gibbs", judge)

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        go_on = sampler(problem, temperature=temperature, until=boundary(step))
        rate = judged(judge, problem, potential)

        async def sweep(index: int, reference: Particle | None) -> list[Particle]:
            advance, weigh = remembering(go_on, rate, reference)
            choose = resampling(ess, weigh, sweep=index, keep_first=reference is not None)

            async def select(thoughts: list[Thought]) -> list[Thought]:
                chosen = await choose(thoughts)
                for particle in cast(list[Particle], chosen[1:]):
                    particle.course = ()  # copies of the reference go their own ways
                return chosen

            particles = [Particle(branch) for branch in root.fork(n)]
            if reference is not None:
                particles[0].course = reference.past
            swept = await population(particles, advance, select, limit=step_tokens, rounds=rounds)
            return cast(list[Particle], swept)

        found: list[Particle] = []
        reference, dearest = None, 0
        for index in range(sweeps):
            before = budget.spent_tokens
            swept = [] if budget.left_tokens < dearest else await sweep(index, reference)
            complete = not budget.over or all(particle.done for particle in swept)
            if found and not (swept and complete):
                root.run.remark(f"the budget covered {index} of {sweeps} sweeps")
                break
            found += swept
            dearest = max(dearest, budget.spent_tokens - before)
            point = uniform(root.run.seed, 0, index)
            picked = independent([particle.total for particle in swept], [point]).index(1)
            for particle in [*swept, *([reference] if reference else [])]:
                if particle is not swept[picked]:
                    particle.branch.drop("another trajectory is the reference")
            reference = swept[picked]
        return list(found)

    return run
