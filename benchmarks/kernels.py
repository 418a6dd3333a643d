"""How near the native kernels come to the machine's limits.

    python benchmarks/kernels.py [--threads N] [--isa NAME] [--only PART] [--kv TYPE]

`linear`: one matrix too large for the caches, by rows of activations. Weight bytes per second are
compared with a plain read of as many bytes by as many threads; operations count a multiplication
and an addition each. `attend`: branches and prompts in the head shapes of three models, against the
time that a matrix product's multiplications, or a plain read of the keys and values, would take.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Literal

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy comes: `multiply_rate` brings the threads

import numpy as np

from anabranch.backends.base import PAGE_SLOTS, Batch, Cache, CacheShape, Quantized, Rope, Storage
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


def multiply_rate(threads: int, budget: float) -> float:
    """Float32 multiply-adds per second of `threads` matrix products at once, a thread each."""
    a = np.ones((1024, 1024), np.float32)
    with ThreadPoolExecutor(threads) as pool:
        took = seconds_of(lambda: list(pool.map(np.matmul, [a] * threads, [a] * threads)), budget)
    return threads * a.size * len(a) / took


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


def branches(count: int, prefix: int, own: int, shared: bool = True) -> Batch:
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


def chunk(start: int, rows: int) -> Batch:
    """`rows` positions of one sequence, from `start`; each is stored in the slot of its number."""
    positions = np.arange(start, start + rows, dtype=np.int32)
    pages = -(-(start + rows) // PAGE_SLOTS)
    return Batch(
        tokens=np.zeros(rows, np.int32),
        positions=positions,
        slots=positions,
        row_starts=np.array([0, rows], np.int32),
        tables=np.arange(pages, dtype=np.int32),
        table_starts=np.array([0, pages], np.int32),
    )


def fill(backend: NativeBackend, shape: CacheShape, pages: int) -> Cache:
    """A cache of random keys and values: memory never written reads as one cached page of zeros."""
    cache, step = backend.cache(shape, pages), 64 * PAGE_SLOTS
    rng = np.random.default_rng(0)
    still = np.ones((pages * PAGE_SLOTS, shape.dim // 2), np.float32)
    qkv = rng.normal(size=(step, 3 * shape.kv_heads * shape.dim)).astype(np.float32)
    for start in range(0, pages * PAGE_SLOTS, step):
        rows = min(step, pages * PAGE_SLOTS - start)
        plan = backend.plan(chunk(start, rows), cache)
        q = np.empty((rows, shape.kv_heads * shape.dim), np.float32)
        for layer in range(shape.layers):
            rope = Rope(still, 0 * still)
            backend.rope_store(qkv[:rows], cache, layer, plan, rope, q)
    return cache


CASES = [
    ("1 branch at 256", branches(1, 240, 16)),
    ("1 branch at 4096", branches(1, 4080, 16)),
    ("1 branch at 16384", branches(1, 16368, 16)),
    ("8 branches, 256 shared + 32", branches(8, 256, 32)),
    ("32 branches, 256 shared + 32", branches(32, 256, 32)),
    ("32 branches, 1024 shared + 32", branches(32, 1024, 32)),
    ("32 branches, 4096 shared + 32", branches(32, 4096, 32)),
    ("32 branches, 1024 copied + 32", branches(32, 1024, 32, shared=False)),
    ("prompt of 256 rows at 0", chunk(0, 256)),
    ("prompt of 256 rows at 1800", chunk(1800, 256)),
]
MODELS = [
    ("SmolLM2-135M", 9, CacheShape(1, 3, 64), 0),
    ("Qwen2.5-0.5B", 14, CacheShape(1, 2, 64), 0),
    ("Gemma3-270M", 4, CacheShape(1, 1, 256), 512),
]
COLD = 100 << 20
"""Bytes of all layers, visited in turn as a pass does: none finds its keys still in a cache."""


def bench_attend(backend: NativeBackend, threads: int, storage: Storage, budget: float) -> None:
    multiply = multiply_rate(threads, budget)
    read = read_rate(1 << 28, threads, budget)
    print(f"\nattend, {storage}")
    print(f"limits: {multiply / 1e9:.0f} G multiply-adds/s, {read / 1e9:.0f} GB/s read")
    print("model         batch                                us   of the limit, set by")
    for (model, heads, shape, window), (name, batch) in product(MODELS, CASES):
        pages = int(batch.tables.max()) + 1
        shape = replace(shape, storage=storage)
        shape = replace(shape, layers=1 + COLD // (pages * shape.page_bytes))
        cache = fill(backend, shape, pages)
        plan = backend.plan(batch, cache)
        q = np.random.default_rng(0).normal(size=(plan.rows, heads * shape.dim)).astype(np.float32)
        out = np.empty_like(q)

        def all_layers(q=q, cache=cache, plan=plan, out=out, layers=shape.layers, window=window):  # type: ignore[no-untyped-def]
            for layer in range(layers):
                backend.attend(q, cache, layer, plan, 0.125, out, window=window)

        took = seconds_of(all_layers, budget) / shape.layers
        seen = np.minimum(batch.positions.astype(np.int64) + 1, window or pages * PAGE_SLOTS)
        last = -(-window // PAGE_SLOTS) if window else pages
        tables = np.split(batch.tables, batch.table_starts[1:-1])
        met = len(np.unique(np.concatenate([table[-last:] for table in tables])))
        limits = {
            "multiply": 2 * heads * shape.dim * int(seen.sum()) / multiply,
            "read": met * shape.page_bytes / shape.layers / read,
        }
        bound = max(limits, key=lambda name: limits[name])
        print(f"{model:13} {name:30} {took * 1e6:8.0f} {limits[bound] / took:8.0%} {bound}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--isa")
    parser.add_argument("--only", choices=("linear", "attend"))
    parser.add_argument("--kv", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--seconds", type=float, default=0.5, help="budget of each measurement")
    arguments = parser.parse_args()
    backend = NativeBackend(arguments.threads, arguments.isa)
    features = backend.features()
    print(f"{platform.machine()}, {features}")
    threads = int(str(features["threads"]))
    if arguments.only != "attend":
        bench_linear(backend, threads, arguments.seconds)
    if arguments.only != "linear":
        bench_attend(backend, threads, arguments.kv, arguments.seconds)


if __name__ == "__main__":
    main()
