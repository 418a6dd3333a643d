"""Decode and prefill speed of the engine, as programs see it; with --peers, next to others.

    python benchmarks/engine.py                           # two models, the table below
    python benchmarks/engine.py --models FILE.gguf --json
    python benchmarks/engine.py --peers --json FILE       # seven points with ratios, and a plot

Decode: tokens/s over all branches that share one 256-token prefix, at 1, 8 and 32 branches, each
drawing at temperature 1. Prefill: tokens/s of a 512-token prompt. Medians of several repeats, each
from an empty cache. What `--peers` compares and how, and how to install them: README.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from peers.anabranch import Anabranch
from reach import Reach, table
from workers import WorkerError, environment, peers_python, say

from anabranch.backends.native import NativeBackend
from anabranch.models.registry import resolve

PREFIX, PROMPT, STEPS = 256, 512, 48


def measure(model: str, threads: int | None, repeats: int, steps: int) -> dict[str, float]:
    """Median tokens/s of one model: `prefill_512`, `decode_1`, `decode_8`, `decode_32`."""
    rng = random.Random(0)

    def prompt(count: int) -> list[int]:
        return [rng.randrange(1000, 30000) for _ in range(count)]

    ours = Anabranch(model, threads)
    try:
        ours.touch()
        ours.decode(prompt(PREFIX), 4, 4)  # touch every page of the weights once
        seconds = [ours.first(prompt(PROMPT))["seconds"] for _ in range(repeats)]
        rates = {f"prefill_{PROMPT}": PROMPT / statistics.median(seconds)}
        for n in (1, 8, 32):
            seconds = [ours.decode(prompt(PREFIX), n, steps)["seconds"] for _ in range(repeats)]
            rates[f"decode_{n}"] = n * steps / statistics.median(seconds)
        return {name: round(rate, 1) for name, rate in rates.items()}
    finally:
        ours.lm.close()


def provenance(threads: int | None) -> dict[str, Any]:
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
        "features": NativeBackend(threads).features(),
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


def short(model: str) -> str:
    """A model's name, or its file's."""
    return Path(model).name.removesuffix(".gguf")


def print_ours(options: argparse.Namespace) -> None:
    """Our own figures."""
    results = {}
    for model in options.models:
        results[model] = measure(model, options.threads, options.repeats, options.steps)
        say(f"measured {model}")
    told = provenance(options.threads)
    if options.json:
        write(options.json, {**told, "tokens_per_second": results})
        return
    print_provenance(told)
    columns = list(next(iter(results.values())))
    print(f"\n{'tokens/s':24}" + "".join(f"{column:>13}" for column in columns))
    for model, row in results.items():
        print(f"{short(model):24}" + "".join(f"{row[column]:13.1f}" for column in columns))


def print_reach(options: argparse.Namespace) -> None:
    """The table of the seven points; what was measured by then, if it is interrupted or fails."""
    told = provenance(options.threads)
    threads = told["features"]["threads"]
    done: list[Reach] = []
    try:
        for model in options.models:
            done.append(Reach(model, Path(resolve(model)), threads, options.repeats))
            done[-1].run(options.points)
    except KeyboardInterrupt:
        say("interrupted")
    finally:
        report(done, told, options)


def report(done: list[Reach], told: dict[str, Any], options: argparse.Namespace) -> None:
    """Print what was measured, and write it to a file if one is asked for."""
    print_provenance({**told, "repeats": options.repeats})
    for reach in done:
        for name, about in reach.about.items():
            text = f"{about['version']}, {about['format']}; {about['settings']}"
            print(f"{short(reach.name):20} {name:16} {text}")
    rows = [row for reach in done for row in reach.rows]
    print("\n" + table(rows))
    goals = [goal for row in rows for goal in row.goals]
    print(f"\n{sum(goal.reached for goal in goals)} of {len(goals)} goals reached")
    if options.json:
        models = {
            reach.name: {
                "about": reach.about,
                "rows": [row.as_json() for row in reach.rows],
                "curves": reach.curves,
            }
            for reach in done
        }
        write(options.json, {**told, "repeats": options.repeats, "models": models})
        plot(options.json)


def plot(figures: str) -> None:
    """Draw the JSON file next to it, with the peers' matplotlib."""
    if figures == "-":
        return
    picture = str(Path(figures).with_suffix(".png"))
    try:
        command = [str(peers_python()), str(Path(__file__).with_name("plot.py")), figures, picture]
    except WorkerError as error:
        say(f"no plot: {error}")
        return
    drawn = subprocess.run(command, env=environment(), check=False)
    say(f"plot: {picture}" if drawn.returncode == 0 else "no plot: see above")


def print_provenance(told: dict[str, Any]) -> None:
    for name, value in told.items():
        print(f"{name:9} {value}")


def write(target: str, record: dict[str, Any]) -> None:
    text = json.dumps(record, indent=2) + "\n"
    if target == "-":
        print(text, end="")
    else:
        Path(target).write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["smollm2-135m", "qwen2.5-coder-0.5b"])
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--repeats", type=int, help="default: 5, with --peers 3")
    parser.add_argument("--steps", type=int, default=STEPS, help="tokens a branch, without --peers")
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write JSON there (with --peers a plot beside it), or print it",
    )
    parser.add_argument("--peers", action="store_true", help="the seven points next to the peers")
    parser.add_argument(
        "--points", type=int, nargs="+", choices=range(1, 8), default=list(range(1, 8))
    )
    options = parser.parse_args()
    if options.repeats is None:
        options.repeats = 3 if options.peers else 5
    (print_reach if options.peers else print_ours)(options)


if __name__ == "__main__":
    main()
