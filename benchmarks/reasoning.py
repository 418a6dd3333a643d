"""Which strategy solves what: accuracy on generated problems with a real model.

    python benchmarks/reasoning.py                                  # 200 problems a task: hours
    python benchmarks/reasoning.py --problems 20 --tasks arithmetic --strategies single pal

Every strategy gets the same problems and seeds. Accuracy comes with a 95% interval (Wilson's), the
difference to the first strategy with one from a paired bootstrap.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from typing import Any

from engine import print_provenance, provenance, write

import anabranch
from anabranch.bench.intervals import difference, wilson
from anabranch.lm import LM
from anabranch.tasks.registry import Posed, problems, tasks

STRATEGIES = ["single", "vote(n=16)"]


async def solve_all(lm: LM, posed: list[Posed], strategy: str, together: int) -> dict[str, Any]:
    """One strategy on all problems, `together` of them at a time."""
    places, right, tokens = asyncio.Semaphore(together), [False] * len(posed), 0
    began = time.perf_counter()

    async def solve(i: int) -> None:
        nonlocal tokens
        async with places:
            answer = await lm.think(posed[i].problem, strategy, seed=i)
        right[i] = posed[i].check(answer.answer)
        tokens += answer.usage.sampled_tokens

    await asyncio.gather(*map(solve, range(len(posed))))
    seconds = time.perf_counter() - began
    return {"right": right, "tokens": tokens / len(posed), "seconds": seconds}


def report(results: dict[str, dict[str, dict[str, Any]]], strategies: list[str]) -> None:
    """The table, and the mean gain over tasks that the first strategy solves in part."""
    base = strategies[0]
    columns = f"{'task':14}{'strategy':28}{'right':>7}{'95% interval':>16}{'tokens':>8}"
    print(f"\n{columns}   against {base}")
    for name, row in results.items():
        for strategy, got in row.items():
            low, high = wilson(sum(got["right"]), len(got["right"]))
            text = f"{name:14}{strategy:28}{statistics.fmean(got['right']):7.1%}"
            text += f"{f'{low:.1%} to {high:.1%}':>16}{got['tokens']:8.0f}"
            if strategy != base:
                mean, below, above, _ = difference(got["right"], row[base]["right"])
                text += f"   {mean:+.1%} ({below:+.1%} to {above:+.1%})"
            print(text)
    fair = [n for n, row in results.items() if 0.2 <= statistics.fmean(row[base]["right"]) <= 0.8]
    for strategy in strategies[1:]:
        gains = [difference(results[n][strategy]["right"], results[n][base]["right"]) for n in fair]
        if gains:
            mean = statistics.fmean(gain.value for gain in gains)
            print(f"{strategy}: {mean:+.1%} on average over {', '.join(fair)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--problems", type=int, default=200, help="of each task")
    parser.add_argument("--tasks", nargs="+", default=[entry.name for entry in tasks()])
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES, help="the first is the base")
    parser.add_argument("--seed", type=int, default=0, help="of the problems")
    parser.add_argument("--together", type=int, default=4, help="problems at a time")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE")
    options = parser.parse_args()
    results: dict[str, dict[str, dict[str, Any]]] = {}
    with anabranch.load(options.model) as lm:
        for name in options.tasks:
            posed = problems(name, options.problems, options.seed)
            results[name] = {}
            for strategy in options.strategies:
                program = solve_all(lm, posed, strategy, options.together)
                got = results[name][strategy] = lm.run(program)
                share = statistics.fmean(got["right"])
                print(f"{name} {strategy}: {share:.1%}, {got['seconds']:.0f} s", file=sys.stderr)
    told = {**provenance(None), "problems": options.problems, "seed": options.seed}
    print_provenance(told)
    report(results, options.strategies)
    if options.json:
        write(options.json, {**told, "results": json.loads(json.dumps(results))})


if __name__ == "__main__":
    main()
