"""How near the native kernels come to the machine's limits.

    python benchmarks/kernels.py [--threads N] [--isa NAME] [--seconds S]

`linear`: one matrix too large for the caches, by rows of activations. Weight bytes per second are
compared with a plain read of as many bytes by as many threads; operations count a multiplication
and an addition each. `attend`: branches that share a prefix, next to branches that do not.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal

import numpy as np

from anabranch.backends.base import F32, PAGE_SLOTS, Batch, CacheShape, Quantized
from anabranch.backends.native import NativeBackend

OUTPUTS, INPUTS = 24576, 4096
ROWS = (1, 8, 32, 128, 512)


def seconds_of(call: Callable[[], object], budget: float) -> float:
    """The fastest of as many calls as fit the budget, two at least."""
    call()
    fastest, end = float("inf"), time.perf_counter() + budget
    calls = 0
    while calls < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        fastest = min(fastest, time.perf_counter() - start)
        calls += 1
    return fastest


def read_rate(nbytes: int, threads: int, budget: float) -> float:
    """Bytes per second that `threads` threads read from memory."""
    parts = np.array_split(np.ones(nbytes // 8, np.int64), threads)
    with ThreadPoolExecutor(threads) as pool:
        return nbytes / seconds_of(lambda: list(pool.map(np.max, parts)), budget)


def random_matrix(bits: Literal[4, 8]) -> Quantized:
    """W4 with offsets, or W8 without, of random integers; its factors fit binary16."""
    rng = np.random.default_rng(0)
    low, high, kind = (0, 16, np.uint8) if bits == 4 else (-127, 128, np.int8)
    q = rng.integers(low, high, (OUTPUTS, INPUTS), kind)
    scale = np.full((OUTPUTS, INPUTS // 32), 2.0**-10, np.float32)
    return Quantized(q, scale, -8 * scale if bits == 4 else None, bits, 32)


def bench_linear(backend: NativeBackend, threads: int, budget: float) -> None:
    print("\nlinear, 24576 outputs x 4096 inputs")
    print("form  rows       ms   weights GB/s   of a plain read   Gop/s")
    for bits in (4, 8):
        weight = backend.pack([random_matrix(bits)])
        limit = read_rate(weight.nbytes, threads, budget)
        for rows in ROWS:
            x = np.random.default_rng(1).normal(size=(rows, INPUTS)).astype(np.float32)
            out = np.empty((rows, OUTPUTS), np.float32)
            took = seconds_of(partial(backend.linear, x, weight, out), budget)
            rate = weight.nbytes / took
            print(
                f"W{bits}   {rows:5} {took * 1e3:8.2f} {rate / 1e9:14.1f} {rate / limit:16.0%}"
                f" {2 * rows * OUTPUTS * INPUTS / took / 1e9:8.0f}"
            )


def branches(count: int, prefix: int, own: int, shared: bool) -> Batch:
    """`count` branches at position `prefix + own - 1` that share their first `prefix` positions."""
    pages, tail = prefix // PAGE_SLOTS, -(-own // PAGE_SLOTS)
    trunk = np.arange(pages, dtype=np.int32)
    tables = [
        np.concatenate([trunk if shared else trunk + i * pages, first + np.arange(tail)])
        for i, first in enumerate(range(count * pages, count * (pages + tail), tail))
    ]
    length = pages + tail
    return Batch(
        tokens=np.zeros(count, np.int32),
        positions=np.full(count, prefix + own - 1, np.int32),
        slots=np.full(count, -1, np.int32),
        row_starts=np.arange(count + 1, dtype=np.int32),
        tables=np.concatenate(tables).astype(np.int32),
        table_starts=np.arange(0, (count + 1) * length, length, dtype=np.int32),
    )


def prompt(rows: int) -> Batch:
    """One sequence of `rows` positions."""
    pages = -(-rows // PAGE_SLOTS)
    return Batch(
        tokens=np.zeros(rows, np.int32),
        positions=np.arange(rows, dtype=np.int32),
        slots=np.full(rows, -1, np.int32),
        row_starts=np.array([0, rows], np.int32),
        tables=np.arange(pages, dtype=np.int32),
        table_starts=np.array([0, pages], np.int32),
    )


def bench_attend(backend: NativeBackend, budget: float) -> None:
    heads, shape = 14, CacheShape(layers=1, kv_heads=2, dim=64)
    print("\nattend, 14 heads on 2 kv heads of 64")
    print("batch                                      us   key-query products/us")
    cases = [(f"{n:2} branches, prefix 448 {kind}, 64 own", branches(n, 448, 64, kind == "shared"))
             for n in (1, 8, 32) for kind in ("shared", "copied")]  # fmt: skip
    for name, batch in [*cases, ("prompt of 512", prompt(512))]:
        cache = backend.cache(shape, int(batch.tables.max()) + 1)
        plan = backend.plan(batch, cache)
        q: F32 = np.random.default_rng(0).normal(size=(plan.rows, heads * 64)).astype(np.float32)
        out = np.empty_like(q)
        took = seconds_of(
            lambda q=q, c=cache, p=plan, out=out: backend.attend(q, c, 0, p, 0.125, out),  # type: ignore[misc]
            budget,
        )
        products = heads * int((batch.positions.astype(np.int64) + 1).sum())
        print(f"{name:38} {took * 1e6:8.0f} {products / took / 1e6:12.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--isa")
    parser.add_argument("--seconds", type=float, default=0.5, help="budget of each measurement")
    arguments = parser.parse_args()
    backend = NativeBackend(arguments.threads, arguments.isa)
    features = backend.features()
    print(f"{platform.machine()}, {features}")
    threads = int(str(features["threads"]))
    bench_linear(backend, threads, arguments.seconds)
    bench_attend(backend, arguments.seconds)


if __name__ == "__main__":
    main()
