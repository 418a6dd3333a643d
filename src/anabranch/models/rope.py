"""Rotary tables with the same bits on every machine.

Powers, sines and cosines of a system's or numpy's library may differ in the last place from one
processor or release to another. Here they are made of what is rounded alike everywhere: + - * and
rounding to integers in float64, and decimal arithmetic. `anabranch doctor --determinism` compares.
"""

from __future__ import annotations

from decimal import Context, Decimal

import numpy as np
import numpy.typing as npt

from anabranch.backends.base import Rope
from anabranch.models.config import RopeSpec

F64 = npt.NDArray[np.float64]

# π/2 as 33 bits, whose product with an integer below 2^20 is exact, and the rest (Cody and Waite).
_QUARTER, _REST = float.fromhex("0x1.921fb544p+0"), float.fromhex("0x1.0b4611a626331p-34")
_PER_QUARTER = float.fromhex("0x1.45f306dc9c883p-1")  # 2/π
_BLOCK = 512  # positions computed at a time: their temporary arrays stay in a cache


class RopeTable:
    """Cosines and sines of one family of frequencies, for as many positions as were asked for.

    Grows by doubling, each value computed once in float64 and rounded once: the values do not
    depend on how it grew, and a long context costs nothing until it is used.
    """

    def __init__(self, spec: RopeSpec, dim: int) -> None:
        powers = np.array([power(spec.base, -2 * j, dim) for j in range(dim // 2)])
        self.frequencies = powers / spec.factor / np.array(spec.divisors or 1.0)
        self.rope = self._block(0)

    def upto(self, positions: int) -> Rope:
        """The table for positions 0 to `positions - 1`, or more."""
        while (size := len(self.rope.cos)) < positions:
            blocks = [self.rope, *map(self._block, range(size, 2 * size, _BLOCK))]
            cos, sin = zip(*((block.cos, block.sin) for block in blocks), strict=True)
            self.rope = Rope(np.concatenate(cos), np.concatenate(sin))
        return self.rope

    def _block(self, start: int) -> Rope:
        cos, sin = turn(np.arange(start, start + _BLOCK)[:, None] * self.frequencies)
        return Rope(cos.astype(np.float32), sin.astype(np.float32))


def power(base: float, above: int, below: int) -> float:
    """`base ** (above / below)` for a positive base: 40 decimal digits, then rounded to float64."""
    digits = Context(prec=40)
    return float(digits.power(Decimal(base), digits.divide(Decimal(above), Decimal(below))))


def turn(angles: F64) -> tuple[F64, F64]:
    """Cosines and sines of angles in radians.

    Off by some 2e-16, up to 1.6 million radians; beyond, the reduction to a quarter turn loses
    digits.
    """
    quarters = np.rint(angles * _PER_QUARTER)
    rest = angles - quarters * _QUARTER - quarters * _REST
    square = rest * rest
    cos, sin = _series(square, 15), rest * _series(square, 14)
    quadrant = quarters - 4 * np.floor(quarters * 0.25)
    odd = (quadrant == 1) | (quadrant == 3)
    swapped_cos, swapped_sin = np.where(odd, sin, cos), np.where(odd, cos, sin)
    return (
        np.where((quadrant == 1) | (quadrant == 2), -swapped_cos, swapped_cos),
        np.where(quadrant >= 2, -swapped_sin, swapped_sin),
    )


def _series(square: F64, last: int) -> F64:
    """Taylor's series in nested form: 1 - x²/(1·2) (1 - x²/(3·4) (...)) is cos x, and, from an even
    `last`, 1 - x²/(2·3) (1 - x²/(4·5) (...)) is sin x / x."""
    total = np.ones_like(square)
    for k in range(last, 0, -2):
        total = 1 - square * (total * (1 / (k * (k + 1))))
    return total
