"""Our strategies next to its_hub and optillm on a llama.cpp server: accuracy, time, tokens.

    python benchmarks/thinking.py --json FILE                  # half an hour on two cores
    python benchmarks/thinking.py --n 4 --problems 1           # a short look
    python benchmarks/thinking.py --server anabranch           # the peers on our server

Same model file, problems, prompts, sampling and numbers of samples, one problem at a time, all in
turn. What is compared with what and how fairly, and how to install the peers: README.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engine import print_provenance, provenance, write
from servers import AnabranchServer, LlamaServer, Server
from workers import Reply, Worker, WorkerError, say

from anabranch.bench.intervals import Difference, difference, wilson
from anabranch.models.registry import resolve
from anabranch.program.answers import extract
from anabranch.reason.prompts import STEPS, ending, stated_question
from anabranch.tasks.registry import Posed, problems

OURS, ITS_HUB, OPTILLM = "anabranch", "its_hub", "optillm"
GOAL_N, GOAL_TIMES = 16, 5.0
"""From this number of samples on, we are to be so many times as fast."""

SYSTEM = "You are a helpful assistant."
"""Said to everyone, since optillm always sends a system's text and templates put one of their own
where there is none."""

FANOUT = 4
"""Ways that a step of a beam is tried; of n samples a round, n / FANOUT are kept."""

STEP_TOKENS, ROUNDS = 96, 24
"""Most tokens of a step, and steps of a path."""


@dataclass(frozen=True)
class Entrant:
    """A method of an engine, and what its worker is told besides the problem."""

    engine: str
    method: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.engine} {self.method}"


@dataclass(frozen=True)
class Solved:
    """One problem: whether the answer is right, wall time, tokens run through the model."""

    right: bool
    seconds: float
    tokens: int


@dataclass(frozen=True)
class Match:
    """Ours next to theirs on the same problems.

    Attributes:
        difference: of the shares solved, ours minus theirs, with its 95% interval.
        times: how many times as fast we are: their median time by ours.
    """

    ours: str
    theirs: str
    problems: int
    right: tuple[float, float]
    intervals: tuple[tuple[float, float], tuple[float, float]]
    difference: Difference
    seconds: tuple[float, float]
    times: float
    tokens: tuple[float, float]

    @property
    def reached(self) -> bool:
        """Not less accurate, as far as one can tell, and `GOAL_TIMES` as fast."""
        return self.difference.high >= 0 and self.times >= GOAL_TIMES


def entrants(n: int, max_tokens: int) -> list[tuple[Entrant, list[Entrant]]]:
    """Each of our strategies with the peers' methods that it is held against."""
    kept = n // FANOUT
    steps = f"step_tokens={STEP_TOKENS}, rounds={ROUNDS}"
    digits = "self_rating(scale=digits, prior=none)"

    def ours(name: str, parameters: str) -> Entrant:
        return Entrant(OURS, name, {"strategy": f"{name}({parameters})"})

    def theirs(engine: str, method: str, temperature: float) -> Entrant:
        sizes = {"n": n, "fanout": FANOUT, "max_tokens": max_tokens}
        paths = {"step_tokens": STEP_TOKENS, "rounds": ROUNDS, "temperature": temperature}
        return Entrant(engine, method, {"method": method, **sizes, **paths})

    beam = theirs(ITS_HUB, "beam", 0.8)
    return [
        (
            ours("vote", f"n={n}, temperature=0.8, max_tokens={max_tokens}"),
            [theirs(ITS_HUB, "self_consistency", 0.8), theirs(OPTILLM, "majority_voting", 0.8)],
        ),
        (
            ours("best", f"n={n}, temperature=0.8, max_tokens={max_tokens}"),
            [theirs(ITS_HUB, "best_of_n", 0.8)],
        ),
        (
            ours("weighted", f"n={n}, judge={digits}, temperature=1.0, max_tokens={max_tokens}"),
            [theirs(OPTILLM, "bon", 1.0)],
        ),
        (ours("beam", f"width={kept}, fanout={FANOUT}, temperature=0.8, {steps}"), [beam]),
        (ours("dvts", f"groups={kept}, fanout={FANOUT}, temperature=0.8, {steps}"), [beam]),
        (
            ours("particles", f"n={n}, temperature=1.0, {steps}"),
            [theirs(ITS_HUB, "particles", 1.0)],
        ),
        (
            ours(
                "mcts", f"fanout={FANOUT}, rounds={n}, temperature=1.0, step_tokens={STEP_TOKENS}"
            ),
            [theirs(OPTILLM, "mcts", 1.0)],
        ),
    ]


def match(ours: str, theirs: str, solved: dict[str, list[Solved]]) -> Match:
    """Two methods on the problems that both have done."""
    a, b = zip(*zip(solved[ours], solved[theirs], strict=False), strict=True)
    right = [[one.right for one in side] for side in (a, b)]
    seconds = [statistics.median(one.seconds for one in side) for side in (a, b)]
    intervals = [wilson(sum(side), len(side)) for side in right]
    return Match(
        ours,
        theirs,
        len(a),
        (statistics.fmean(right[0]), statistics.fmean(right[1])),
        (intervals[0], intervals[1]),
        difference(right[0], right[1]),
        (seconds[0], seconds[1]),
        seconds[1] / seconds[0],
        (
            statistics.fmean(one.tokens for one in a),
            statistics.fmean(one.tokens for one in b),
        ),
    )


def table(matches: list[Match], n: int) -> str:
    """One line a match."""
    lines = [
        f"{'':12}{'against':26}{'right':>19}{'theirs':>19}{'difference':>24}"
        f"{'s':>8}{'theirs':>8}{'times':>8}{'tokens':>9}{'theirs':>8}"
    ]
    for m in matches:
        shares = (
            f"{share:.0%} ({max(0, low):.0%} to {high:.0%})"
            for share, (low, high) in zip(m.right, m.intervals, strict=True)
        )
        mean, low, high, _ = m.difference
        line = f"{m.ours.partition(' ')[2]:12}{m.theirs:26}" + "".join(f"{s:>19}" for s in shares)
        line += f"{f'{mean:+.0%} ({low:+.0%} to {high:+.0%})':>24}"
        line += "".join(f"{seconds:8.2f}" for seconds in m.seconds) + f"{m.times:7.1f}x"
        line += f"{m.tokens[0]:9.0f}{m.tokens[1]:8.0f}"
        lines.append(line + ("" if n < GOAL_N else "  reached" if m.reached else "  MISSED"))
    return "\n".join(lines)


class Contest:
    """Those entrants whose engines are here, on one problem after the other.

    Attributes:
        solved: by entrant, in the order of the problems.
    """

    def __init__(
        self,
        pairs: list[tuple[Entrant, list[Entrant]]],
        workers: Mapping[str, Worker],
        count: Callable[[], int],
    ) -> None:
        """
        Args:
            count: tokens that the server has computed so far.
        """
        self.pairs, self._workers, self._count = pairs, workers, count
        self.solved: dict[str, list[Solved]] = {}

    def run(self, rounds: list[list[Posed]], minutes: float) -> None:
        """Rounds of problems, until one more might not end in time; tells of each."""
        everyone = [entrant for ours, peers in self.pairs for entrant in (ours, *peers)]
        named = {str(e): e for e in everyone if e.engine in self._workers}
        # What is loaded or made once is nobody's time.
        for first in {e.engine: e for e in reversed(named.values())}.values():
            self._enter(first, rounds[0][0], 0, named)
        self.solved.clear()
        began, longest, turn = time.perf_counter(), 0.0, 0
        for place, posed in enumerate(rounds, 1):
            started = time.perf_counter()
            if started - began + longest > 60 * minutes:
                say(f"{minutes:g} minutes do not suffice for more than {place - 1} rounds")
                break
            for one in posed:
                turn += 1
                for name in _rotated(list(named), turn):
                    seed = turn * len(everyone) + everyone.index(named[name])
                    self._enter(named[name], one, seed, named)
            seconds = time.perf_counter() - started
            longest = max(longest, seconds)
            say(f"round {place} of {len(rounds)}: {seconds:.0f} s")

    def matches(self) -> list[Match]:
        """What can be compared by now."""
        return [
            match(str(ours), str(peer), self.solved)
            for ours, peers in self.pairs
            for peer in peers
            if self.solved.get(str(ours)) and self.solved.get(str(peer))
        ]

    def _enter(self, entrant: Entrant, posed: Posed, seed: int, named: dict[str, Entrant]) -> None:
        """One problem; an entrant that cannot do it is left out from then on, with a line."""
        name = str(entrant)
        try:
            self.solved.setdefault(name, []).append(self._solve(entrant, posed, seed))
        except WorkerError as error:
            say(f"{name} is left out from here on: {error}")
            del named[name]

    def _solve(self, entrant: Entrant, posed: Posed, seed: int) -> Solved:
        """One problem. Clocks run in the worker; the server's counters are read outside of them."""
        worker, problem = self._workers[entrant.engine], posed.problem
        question = f"{stated_question(problem)}\n\n{STEPS} {ending(problem)}"
        if entrant.engine == OURS:
            told = {"text": question, "system": SYSTEM, "kind": problem.kind}
            reply = worker.ask("think", problem=told, seed=seed, **entrant.arguments)
            answer, tokens = reply["answer"], reply["tokens"]
        else:
            before = self._count()
            reply = worker.ask("think", system=SYSTEM, question=question, **entrant.arguments)
            answer, tokens = extract(reply["text"], problem) or "", self._count() - before
        return Solved(posed.check(answer), reply["seconds"], tokens)


def _rotated(names: list[str], by: int) -> list[str]:
    """The same in another order, so that nobody always comes first."""
    by %= max(1, len(names))
    return names[by:] + names[:by]


def start(
    model: Path, threads: int, n: int, stack: ExitStack, upstream: str = "llama.cpp"
) -> tuple[dict[str, Worker], Callable[[], int], dict[str, Reply]]:
    """The engines that are installed, the server's count of tokens, and what there is to say.

    What is not here is left out, with a line that says why. Raises WorkerError without ours.
    """
    workers: dict[str, Worker] = {}
    about: dict[str, Reply] = {}

    def enter(engine: str, **options: Any) -> Worker:
        worker = workers[engine] = Worker(engine, model, threads, **options)
        stack.callback(worker.close)
        about[engine] = worker.about
        return worker

    enter(OURS).ask("touch")
    try:
        server: Server = stack.enter_context(
            AnabranchServer(model, threads) if upstream == OURS else LlamaServer(model, threads, n)
        )
    except WorkerError as error:
        say(f"no peers: {error}")
        return workers, lambda: 0, about
    about[server.name] = {"version": server.version, "settings": server.settings}
    for engine in (ITS_HUB, OPTILLM):
        try:
            enter(engine, server=server.url, name=server.model)
        except WorkerError as error:
            say(f"{engine} is left out, see README.md: {error}")
    return workers, server.tokens, about


def report(
    contest: Contest, about: dict[str, Reply], told: dict[str, Any], options: argparse.Namespace
) -> None:
    """Print what was measured, and write it to a file if one is asked for."""
    print_provenance(told)
    for name, one in about.items():
        print(f"{name:12} {one['version']}; {one['settings']}")
    matches = contest.matches()
    print("\n" + table(matches, options.n))
    if options.n >= GOAL_N:
        print(f"\n{sum(m.reached for m in matches)} of {len(matches)} goals reached")
    if options.json:
        everyone = [entrant for ours, peers in contest.pairs for entrant in (ours, *peers)]
        record = {
            **told,
            "about": about,
            "methods": {str(entrant): entrant.arguments for entrant in everyone},
            "matches": [{**asdict(m), "reached": m.reached} for m in matches],
            "solved": {name: list(map(asdict, done)) for name, done in contest.solved.items()},
        }
        write(options.json, record)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--n", type=int, default=16, help=f"samples, a multiple of {FANOUT}")
    parser.add_argument(
        "--server",
        default="llama.cpp",
        choices=["llama.cpp", OURS],
        help="what the peers' methods run on",
    )
    parser.add_argument("--strategies", nargs="+", help="some of ours, with their peers")
    parser.add_argument("--tasks", nargs="+", default=["arithmetic", "words"])
    parser.add_argument("--problems", type=int, default=10, help="of each task, at most")
    parser.add_argument("--minutes", type=float, default=28.0, help="begin no round after that")
    parser.add_argument("--max-tokens", type=int, default=160, help="of an answer in one piece")
    parser.add_argument("--seed", type=int, default=0, help="of the problems")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write or print JSON")
    options = parser.parse_args()
    if options.n < FANOUT or options.n % FANOUT:
        parser.error(f"--n must be a multiple of {FANOUT}")
    if options.problems < 1:
        parser.error("--problems must be at least 1")
    told = provenance(options.threads)
    told |= {key: getattr(options, key) for key in ("n", "tasks", "seed", "max_tokens")}
    by_task = [problems(name, options.problems, options.seed) for name in options.tasks]
    rounds = [list(posed) for posed in zip(*by_task, strict=True)]
    pairs = entrants(options.n, options.max_tokens)
    known = [ours.method for ours, _ in pairs]
    if unknown := set(options.strategies or ()) - set(known):
        parser.error(f"no strategy {', '.join(sorted(unknown))}: there are {', '.join(known)}")
    pairs = [pair for pair in pairs if pair[0].method in (options.strategies or known)]
    model, threads = Path(resolve(options.model)), told["features"]["threads"]
    with ExitStack() as stack:
        workers, count, about = start(model, threads, options.n, stack, options.server)
        contest = Contest(pairs, workers, count)
        try:
            contest.run(rounds, options.minutes)
        except KeyboardInterrupt:
            say("interrupted")
        finally:
            report(contest, about, told, options)


if __name__ == "__main__":
    main()
