"""The seven points that the engine is built for, measured next to its peers in one run.

What each engine is asked is in `peers/protocol.py`, how fairly in README.md.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from kernels import read_rate
from workers import Reply, Worker, WorkerError, environment, interleave, medians, requantized, say

OURS, SAME, BEST, OPENVINO, TORCH = (
    "anabranch", "llama.cpp", "llama.cpp Q4_0", "OpenVINO", "transformers"
)  # fmt: skip
OPENVINO_FORMAT = {"smollm2-135m": "Q4_0"}
"""The GGUF type that OpenVINO GenAI is fastest with; others: Q8_0, as it reads few K formats."""

STEPS = {1: 48, 8: 32, 32: 24, 64: 16}
"""Tokens drawn for each branch, by branches."""


@dataclass(frozen=True)
class Goal:
    """What a figure is held against."""

    text: str
    got: float
    bound: float
    sense: Literal["at least", "at most"] = "at least"

    @property
    def reached(self) -> bool:
        return self.got >= self.bound if self.sense == "at least" else self.got <= self.bound


@dataclass
class Row:
    """One line of the table: medians by engine, in `unit`, and the goals they decide.

    Attributes:
        runs: all repeats, seconds.
    """

    point: int
    model: str
    what: str
    unit: str
    figures: dict[str, float]
    goals: list[Goal] = field(default_factory=list)
    runs: dict[str, list[float]] = field(default_factory=dict)

    def ratio(self, peer: str) -> float | None:
        """How many times as fast we are as that peer, or None if it was not measured."""
        if peer not in self.figures:
            return None
        ours, theirs = self.figures[OURS], self.figures[peer]
        return theirs / ours if self.unit == "s" else ours / theirs

    def aim(self, peer: str, bound: float) -> Row:
        """Hold us to a multiple of that peer's speed, if it was measured."""
        if (ratio := self.ratio(peer)) is not None:
            self.goals.append(Goal(f"times {peer}", ratio, bound))
        return self

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "goals": [{**asdict(g), "reached": g.reached} for g in self.goals]}


class Reach:
    """The points for one model.

    Attributes:
        rows: what was measured so far.
        curves: seconds of a step by branches, prefix length and depth: `{name: [[x, s], ...]}`.
        about: what each engine says of itself.
    """

    def __init__(self, name: str, path: Path, threads: int, repeats: int) -> None:
        self.name, self.path, self.threads, self.repeats = name, path, threads, repeats
        self.small = "135m" in name
        self.rows: list[Row] = []
        self.curves: dict[str, list[tuple[int, float]]] = {}
        self.about: dict[str, Reply] = {}
        self._workers: dict[str, Worker] = {}
        self._rng = random.Random(0)
        self._decoded: dict[int, Row] = {}

    def run(self, points: list[int]) -> None:
        """Measure these points."""
        with ExitStack() as stack:
            self._start(stack, ours_only=set(points) <= {5, 6})
            for point in points:
                say(f"{self.name}: point {point}")
                getattr(self, f"point_{point}")()

    def _start(self, stack: ExitStack, ours_only: bool) -> None:
        kinds = {
            SAME: ("llama_cpp", None),
            BEST: ("llama_cpp", "Q4_0"),
            OPENVINO: ("openvino", OPENVINO_FORMAT.get(self.name, "Q8_0")),
            TORCH: ("transformers", None),
        }
        self._add(stack, OURS, "anabranch", None)
        for name, (module, kind) in () if ours_only else kinds.items():
            try:
                self._add(stack, name, module, kind)
            except WorkerError as error:
                say(f"skipped {name}: {error}")
        self._workers[OURS].ask("touch")

    def _add(self, stack: ExitStack, name: str, module: str, kind: str | None) -> None:
        say(f"{self.name}: loading {name}")
        worker = Worker(module, requantized(self.path, kind), self.threads)
        stack.callback(worker.close)
        self._workers[name] = worker
        self.about[name] = {**worker.about, "format": kind or "the file as it is"}
        worker.ask("first", prompt=self._tokens(64))
        worker.ask("decode", prompt=self._tokens(64), branches=2, steps=2)

    def _tokens(self, count: int) -> list[int]:
        """Ids that nobody has seen in this order; the first thousand hold the special ones."""
        return [self._rng.randrange(1000, 30000) for _ in range(count)]

    def _measure(
        self, task: str, turns: list[Reply], peers: tuple[str, ...]
    ) -> dict[str, list[Reply]]:
        chosen = {n: w for n, w in self._workers.items() if n == OURS or n in peers}
        return interleave(chosen, self.repeats, task, turns)

    def _row(
        self, point: int, what: str, replies: dict[str, list[Reply]], tokens: int | None = None
    ) -> Row:
        """A row of seconds, or of tokens/s where `tokens` says how many."""
        figures = medians(replies)
        if tokens is not None:
            figures = {name: tokens / seconds for name, seconds in figures.items()}
        runs = {name: [reply["seconds"] for reply in got] for name, got in replies.items()}
        unit = "s" if tokens is None else "tokens/s"
        row = Row(point, self.name, what, unit, figures, runs=runs)
        self.rows.append(row)
        return row

    # ---- 1, 2, 3: branches, one branch, prompts ------------------------------------------------

    def point_1(self) -> None:
        for branches in STEPS:
            row = self._decode(branches)
            if branches == 32 and self.small:
                row.aim(OPENVINO, 2.5).aim(SAME, 6)
            elif branches == 32:
                row.aim(SAME, 3.5)

    def point_2(self) -> None:
        row = self._decode(1).aim(SAME, 1.5)
        nbytes = self.about[OURS]["weight_bytes"]
        alone, reads = [], []
        for _ in range(self.repeats):
            reads.append(read_rate(nbytes, self.threads, 0.3))
            reply = self._workers[OURS].ask(
                "decode", prompt=self._tokens(256), branches=1, steps=STEPS[1]
            )
            alone.append(nbytes * STEPS[1] / reply["seconds"])
        share = statistics.median(alone) / statistics.median(reads)
        row.goals.append(Goal("of a plain read of the weights", share, 0.75))

    def point_3(self) -> None:
        for length, what in ((512, "prompt of 512"), (2000, "first token after 2,000")):
            turns = [{"prompt": self._tokens(length)} for _ in range(self.repeats)]
            replies = self._measure("first", turns, (SAME, BEST, OPENVINO, TORCH))
            row = self._row(3, what, replies, length if length == 512 else None)
            row.aim(OPENVINO, 1.2).aim(SAME, 4)

    def _decode(self, branches: int) -> Row:
        if branches not in self._decoded:
            steps = STEPS[branches]
            turns = [
                {"prompt": self._tokens(256), "branches": branches, "steps": steps}
                for _ in range(self.repeats)
            ]
            replies = self._measure("decode", turns, (SAME, BEST, OPENVINO))
            if TORCH in self._workers and branches < 64:  # slow: one repeat, few steps, as a rate
                few = {**turns[0], "prompt": self._tokens(256), "steps": 4}
                for got in interleave({TORCH: self._workers[TORCH]}, 1, "decode", [few]).values():
                    replies[TORCH] = [{"seconds": got[0]["seconds"] * steps / 4}]
            what = f"{branches} branch{'es' * (branches > 1)}"
            self._decoded[branches] = self._row(
                2 if branches == 1 else 1, what, replies, branches * steps
            )
        return self._decoded[branches]

    # ---- 4: tree work --------------------------------------------------------------------------

    def point_4(self) -> None:
        tokens, turns = self._tokens, range(self.repeats)
        works: dict[str, tuple[str, list[Reply]]] = {
            "prune": (
                "prune and fork 16 branches",
                [{"prompt": tokens(512), "steps": 24, "parents": self._parents()} for _ in turns],
            ),
            "document": (
                "16 questions on 4,096 tokens",
                [
                    {
                        "document": tokens(4096),
                        "questions": [tokens(32) for _ in range(16)],
                        "branches": 4,
                        "steps": 32,
                    }
                    for _ in turns
                ],
            ),
            "options": (
                "32 options under 1,000 tokens",
                [
                    {"prompt": tokens(1000), "options": [tokens(4) for _ in range(32)]}
                    for _ in turns
                ],
            ),
        }
        for task, (what, asked) in works.items():
            say(f"{self.name}: {what}")
            row = self._row(4, what, self._measure(task, asked, (BEST, OPENVINO)))
            if theirs := {name: s for name, s in row.figures.items() if name != OURS}:
                row.aim(min(theirs, key=lambda name: theirs[name]), 4)

    def _parents(self) -> list[list[int]]:
        """Eight rounds of sixteen branches: seven times a drawn half goes and the rest fork."""
        rounds = []
        for _ in range(7):
            order = self._rng.sample(range(16), 16)
            kept, gone = order[:8], order[8:]
            parent = list(range(16))
            for child, source in zip(gone, kept, strict=True):
                parent[child] = source
            rounds.append(parent)
        return rounds

    # ---- 5, 6, 7: ours, and ours on a busy machine ---------------------------------------------

    def point_5(self) -> None:
        ours, context = self._workers[OURS], self.about[OURS]["context"]

        def step(prompt: list[int], branches: int, steps: int = 16) -> float:
            reply = ours.ask("decode", prompt=prompt, branches=branches, steps=steps)
            return float(reply["seconds"]) / steps

        curve = [(n, step(self._tokens(256), n)) for n in (1, 2, 4, 8, 16, 32, 64, 128)]
        self.curves["branches"] = curve
        text = self._tokens(16384)
        for n in (1, 8, 32):
            lengths = sorted({min(k, context - 64) for k in (256, 1024, 4096, 16384)})
            # The longer prompt goes on from the shorter, which is cached: each token is read once.
            self.curves[f"prefix, {n} branches"] = [(k, step(text[:k], n)) for k in lengths]
        self.curves["depth"] = [
            (d, self._median("chain", depth=d, span=2, steps=16) / 16) for d in (0, 16, 64, 128)
        ]
        for name, points in self.curves.items():
            told = {f"{x}": s * 1e3 for x, s in points}
            self.rows.append(Row(5, self.name, f"ms a step, by {name}", "ms", told))
        self._share(32)
        share = self._share(1)
        row = Row(5, self.name, "Python's share of a step", "share", {OURS: share})
        row.goals.append(Goal("of a step", share, 0.08 if self.small else 0.04, "at most"))
        self.rows.append(row)

    def _share(self, branches: int) -> float:
        """Where the time of a step goes; what of it is spent outside the backend's operations."""
        steps, spent = 24, []
        for _ in range(max(3, self.repeats)):
            prompt = self._tokens(256)
            reply = self._workers[OURS].ask("share", prompt=prompt, branches=branches, steps=steps)
            python = reply["seconds"] - sum(reply["native"].values())
            spent.append({**reply["native"], "Python": python})
        told = {k: statistics.median(s[k] for s in spent) * 1e3 / steps for k in spent[0]}
        what = f"ms of a step, {branches} branch{'es' * (branches > 1)}"
        self.rows.append(Row(5, self.name, what, "ms", told))
        return statistics.median(s["Python"] / sum(s.values()) for s in spent)

    def _median(self, task: str, **arguments: Any) -> float:
        length = 1024 - arguments["depth"] * arguments["span"]
        replies = [
            self._workers[OURS].ask(task, prompt=self._tokens(length), **arguments)
            for _ in range(self.repeats)
        ]
        return float(statistics.median(reply["seconds"] for reply in replies))

    def point_6(self) -> None:
        command = [sys.executable, "-m", "anabranch", "solve", "What is 17 * 3?"]
        command += ["--model", self._known(), "--strategy", "single", "--max-tokens", "1"]
        command += ["--quiet", "--offline"]
        seconds = []
        for _ in range(self.repeats + 1):
            began = time.perf_counter()
            subprocess.run(command, env=environment(), check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - began)
        start = statistics.median(seconds[1:])  # the first fills caches
        row = Row(6, self.name, "solve, one token, to its exit", "s", {OURS: start})
        row.goals.append(Goal("seconds", start, 1.5 if self.small else 4, "at most"))
        fresh = Worker("anabranch", self.path, self.threads)
        try:
            fresh.ask("decode", prompt=self._tokens(256), branches=8, steps=32)
            memory = fresh.ask("memory")
        finally:
            fresh.close()
        packed = memory["weights"] + memory["kv"]
        peak = Row(6, self.name, "peak memory", "MB", {OURS: memory["peak"] / 1e6})
        peak.goals.append(Goal("times weights and KV", memory["peak"] / packed, 1.35, "at most"))
        self.rows += [row, peak]

    def _known(self) -> str:
        return self.name if not Path(self.name).exists() else str(self.path)

    def point_7(self) -> None:
        if not hasattr(os, "sched_setaffinity"):
            say("skipped point 7: this system pins no process to a core")
            return
        for branches in (8, 32):
            free: dict[str, list[Reply]] = {}
            busy: dict[str, list[Reply]] = {}
            for _ in range(self.repeats):
                turn = {"branches": branches, "steps": 16}
                for into, spinning in ((free, False), (busy, True)):
                    with spinner() if spinning else ExitStack():
                        asked = [{**turn, "prompt": self._tokens(256)}]
                        got = interleave(self._only(OURS, BEST), 1, "decode", asked)
                    for name, replies in got.items():
                        into.setdefault(name, []).extend(replies)
            kept = {n: medians(free)[n] / seconds for n, seconds in medians(busy).items()}
            row = Row(7, self.name, f"{branches} branches, one core busy", "share", kept)
            row.goals.append(Goal("of the free machine", kept[OURS], 0.4))
            self.rows.append(row)

    def _only(self, *names: str) -> dict[str, Worker]:
        return {name: worker for name, worker in self._workers.items() if name in names}


@contextmanager
def spinner() -> Iterator[None]:
    """Another process that keeps one core busy."""
    core = max(os.sched_getaffinity(0))
    code = f"import os\nos.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        time.sleep(0.2)
        yield
    finally:
        process.kill()
        process.wait()


def table(rows: list[Row]) -> str:
    """All rows for people: figures, how many times as fast we are, and which goals are reached."""
    lines = []
    for row in sorted(rows, key=lambda r: (r.point, r.model)):
        figures = []
        for name, value in row.figures.items():
            ratio = row.ratio(name) if name != OURS and row.unit in ("s", "tokens/s") else None
            times = f" ({ratio:.2f}x)" if ratio is not None else ""
            figures.append(f"{name} {value:.4g}{times}")
        goals = [
            f"{'reached' if g.reached else 'MISSED'}: {g.got:.2f} {g.text}, {g.sense} {g.bound:g}"
            for g in row.goals
        ]
        head = f"{row.point}  {row.model:20} {row.what:30} {row.unit:9}"
        lines.append(f"{head} {' | '.join(figures)}")
        lines += [f"{'':4}{goal}" for goal in goals]
    return "\n".join(lines)
