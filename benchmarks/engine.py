"""Decode and prefill speed of the engine, as programs see it.

    python benchmarks/engine.py                           # two models, the table below
    python benchmarks/engine.py --models FILE.gguf --json

Decode: tokens/s over all branches that share one 256-token prefix, at 1, 8 and 32 branches, each
drawing at temperature 1. Prefill: tokens/s of a 512-token prompt. Medians of several repeats, each
from an empty cache.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anabranch
from anabranch.backends.native import NativeBackend

PREFIX, PROMPT, STEPS = 256, 512, 48


async def decode(lm: anabranch.LM, branches: int, steps: int, seed: int) -> float:
    """Tokens per second of `branches` branches under one prefix of their own."""
    root = lm.engine.open(random_tokens(lm, PREFIX, seed), seed=seed)
    await root.peek(1)
    forks = root.fork(branches)
    endless = dict.fromkeys(lm.tokenizer.ends, -1e9)
    began = time.perf_counter()
    done = await asyncio.gather(*(branch.extend(steps, bias=endless) for branch in forks))
    seconds = time.perf_counter() - began
    root.run.drop_all()
    return sum(len(step.tokens) for step in done) / seconds


async def prefill(lm: anabranch.LM, tokens: int, seed: int) -> float:
    """Tokens per second of one prompt, to its first logits."""
    root = lm.engine.open(random_tokens(lm, tokens, seed))
    began = time.perf_counter()
    await root.peek(1)
    seconds = time.perf_counter() - began
    root.drop()
    return tokens / seconds


def random_tokens(lm: anabranch.LM, count: int, seed: int) -> list[int]:
    """Token ids that no earlier repeat has cached."""
    rng = random.Random(seed)
    special = lm.tokenizer.ends
    drawn = (rng.randrange(1000, 30000) for _ in range(2 * count))
    return [token for token in drawn if token not in special][:count]


def measure(model: str, threads: int | None, repeats: int, steps: int) -> dict[str, float]:
    """Medians for one model: `prefill_512`, `decode_1`, `decode_8`, `decode_32`."""
    seeds = iter(range(10**6))
    with anabranch.load(model, threads=threads) as lm:
        lm.run(decode(lm, 4, 4, next(seeds)))  # touch every page of the weights once
        runs = {"prefill_512": lambda: prefill(lm, PROMPT, next(seeds))}
        for n in (1, 8, 32):
            runs[f"decode_{n}"] = lambda n=n: decode(lm, n, steps, next(seeds))
        return {
            name: round(statistics.median(lm.run(call()) for _ in range(repeats)), 1)
            for name, call in runs.items()
        }


def provenance() -> dict[str, Any]:
    """What a figure must carry: commit, machine, command."""
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    return {
        "commit": git.stdout.strip() or "unknown",
        "machine": processor(),
        "features": NativeBackend().features(),
        "python": platform.python_version(),
        "command": "python " + " ".join(sys.argv),
    }


def processor() -> str:
    """The processor's own name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["smollm2-135m", "qwen2.5-coder-0.5b"])
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    results = {}
    for model in options.models:
        results[model] = measure(model, options.threads, options.repeats, options.steps)
        print(f"measured {model}", file=sys.stderr)
    if options.json:
        print(json.dumps({**provenance(), "tokens_per_second": results}, indent=2))
        return
    for name, value in provenance().items():
        print(f"{name:9} {value}")
    columns = list(next(iter(results.values())))
    print(f"\n{'tokens/s':24}" + "".join(f"{column:>13}" for column in columns))
    for model, row in results.items():
        print(f"{Path(model).stem:24}" + "".join(f"{row[column]:13.1f}" for column in columns))


if __name__ == "__main__":
    main()
