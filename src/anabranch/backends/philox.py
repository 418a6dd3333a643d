"""Philox4x32-10: random numbers as a pure function of a key and a counter.

J. K. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. Nothing is stored and
nothing advances, so a branch draws the same numbers whatever else runs and in whatever order.

A stream is a 64-bit key, used as the words (low, high). Two counters are taken:
`(position, 0, 0, 0)` for the token drawn at a position, and `(index low, index high, 0xF0, 1)` for
the key of child `index`; their last words differ, so they never collide.
"""

from __future__ import annotations

Words = tuple[int, int, int, int]

_WORD = 0xFFFFFFFF
_DERIVE = (0xF0, 1)


def philox(key: int, counter: Words) -> Words:
    """Four random 32-bit words for a 64-bit key and a 128-bit counter, low words first."""
    low, high = key & _WORD, key >> 32
    a, b, c, d = counter
    for _ in range(10):
        first, second = a * 0xD2511F53, c * 0xCD9E8D57
        a, b = (second >> 32) ^ b ^ low, second & _WORD
        c, d = (first >> 32) ^ d ^ high, first & _WORD
        low, high = (low + 0x9E3779B9) & _WORD, (high + 0xBB67AE85) & _WORD
    return a, b, c, d


def derive(key: int, *path: int) -> int:
    """The key of a descendant stream: of child `path[0]`, then of its child `path[1]`, ...

    Args:
        key: 64-bit key of the ancestor.
        path: child indices, each in `[0, 2**64)`.
    """
    for index in path:
        words = philox(key, (index & _WORD, index >> 32, *_DERIVE))
        key = words[0] | words[1] << 32
    return key
