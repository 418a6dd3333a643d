"""What search is worth with a solver that errs and a judge that is not sure.

    python benchmarks/noisy.py                       # every method that takes a judge, and sampling
    python benchmarks/noisy.py "beam(width=8)" mcts  # these

Eight steps, each right with probability 0.7; the judge sees the truth through unit noise
(anabranch.bench.simulated). Accuracy comes with its 95% interval (Wilson), tokens are means per problem.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from anabranch.bench.intervals import wilson
from anabranch.reason.registry import strategies
from tests.noisy import right, solve_many

SETTINGS = [
    "vote(n=64)",
    "astar(cost='rise')",
    "astar(cost='consistent')",
    "mcts(rounds=32)",
    "mcts(rounds=128)",
    "mcts(rounds=32, aggregate='last')",
    "mcts(rounds=128, aggregate='last')",
]
"""Worth a look beside the defaults."""


def suitable() -> list[str]:
    """Methods whose only need is a judge or nothing."""
    sampling = ("single", "vote", "best")
    return [m.name for m in strategies() if "judge" in m.parameters or m.name in sampling]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("strategy", nargs="*", help="methods with parameters")
    parser.add_argument("--problems", type=int, default=100, help="problems per method")
    arguments = parser.parse_args()
    print(f"{'accuracy':>8}  {'95% interval':<13} {'sampled':>7} {'charged':>7}  method")
    for strategy in arguments.strategy or [*suitable(), *SETTINGS]:
        answers = solve_many(strategy, arguments.problems)
        count = len(answers)
        solved = sum(right(answers))
        low, high = wilson(solved, count)
        sampled = sum(answer.usage.sampled_tokens for answer in answers) / count
        charged = sampled + sum(answer.usage.forced_tokens for answer in answers) / count
        print(
            f"{solved / count:8.3f}  {low:.3f} - {high:.3f} {sampled:7.1f} {charged:7.1f}  "
            f"{strategy}",
            flush=True,
        )


if __name__ == "__main__":
    main()
