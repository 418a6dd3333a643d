"""Numbers to be copied."""

from __future__ import annotations

import random
from typing import Annotated

from anabranch.program.registry import Range
from anabranch.program.types import Problem
from anabranch.tasks.registry import Make, Posed, task


@task(
    "copy",
    paper="Graves et al. 2014, Neural Turing machines, section 4.1 (copy)",
    summary="Write a number of so many digits again; what the simulated solver can do.",
    difficulty="digits",
    counts="digits",
)
def copy(*, digits: Annotated[int, Range(2, 64)] = 8) -> Make:
    """Nothing to work out: every digit is a step that can go wrong."""

    def make(rng: random.Random) -> Posed:
        number = "".join(str(rng.randint(1, 9)) for _ in range(digits))
        return Posed(Problem(f"Write this number again: {number}", kind="number"), number)

    return make
