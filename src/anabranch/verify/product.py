"""Two judges who must both be content."""

from __future__ import annotations

from collections.abc import Sequence

from anabranch.program.types import Problem, Thought
from anabranch.verify import registry
from anabranch.verify.registry import Judge, JudgedBy, judge


@judge(
    "product",
    paper="Hinton 2002, Training products of experts by minimizing contrastive divergence",
    summary="The product of two judges' ratings; `a * b` for short.",
)
def product(*, a: JudgedBy = "likelihood", b: JudgedBy = "likelihood") -> Judge:
    """Both ratings, multiplied."""

    async def rate(problem: Problem, thoughts: Sequence[Thought]) -> list[float]:
        first = await registry.rate(a, problem, thoughts)
        second = await registry.rate(b, problem, thoughts)
        return [x * y for x, y in zip(first, second, strict=True)]

    return Judge(rate, partial=a.partial and b.partial)
