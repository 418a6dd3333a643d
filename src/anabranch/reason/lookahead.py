"""Lookahead search: beam search by where steps lead, not by how they look."""

from __future__ import annotations

from anabranch.program.types import Strategy
from anabranch.reason.beam import beam
from anabranch.reason.folds import weighted
from anabranch.reason.registry import (
    Aggregated,
    JudgedBy,
    MaxTokens,
    Rounds,
    Samples,
    Steps,
    Temperature,
    needs_partial,
    strategy,
)
from anabranch.verify.rollout import rollout


@strategy(
    "lookahead",
    paper="Snell et al. 2024, Scaling LLM test-time compute optimally can be more effective than "
    "scaling model parameters, section 5.2",
    summary="Beam search in which a step is rated by where it leads: `ahead` more steps, greedily.",
    cost="width x fanout x (1 + ahead) steps a level, rated after the last",
    use="Instead of beam where a step shows only later that it was wrong.",
    fold=weighted,
)
def lookahead(
    *,
    ahead: Rounds = 2,
    width: Samples = 2,
    fanout: Samples = 4,
    judge: JudgedBy = "likelihood",
    aggregate: Aggregated = "last",
    step: Steps = "line",
    step_tokens: MaxTokens = 96,
    rounds: Rounds = 24,
    temperature: Temperature = 0.8,
) -> Strategy:
    """`beam` with the judge `rollout(n=1, steps=ahead, temperature=0)`.

    What a rollout wrote is not kept: the next level draws its steps anew.

    Departures: thoughts that say the same count as one, as in `beam`.
    """
    needs_partial("lookahead", judge)
    return beam(
        width=width,
        fanout=fanout,
        judge=rollout(
            n=1,
            judge=judge,
            max_tokens=ahead * step_tokens,
            steps=ahead,
            step=step,
            temperature=0.0,
        ),
        aggregate=aggregate,
        step=step,
        step_tokens=step_tokens,
        rounds=rounds,
        temperature=temperature,
    )
