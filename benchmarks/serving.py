"""`anabranch serve` under load: next to the engine alone, under long strategies, under 64 clients.

    python benchmarks/serving.py --json FILE              # a quarter of an hour
    python benchmarks/serving.py --seconds 20             # a short look

Ratio: the same requests to the server and to the engine in a process of its own, in turn; tokens/s.
Latency: of a short request, while strategies with many branches run. Load: 64 clients with four
keys and all kinds of work, some of which leave in the middle. What counts and why: README.md.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from engine import print_provenance, provenance, write
from load import CHAT, Client, Outcomes, Watch, connections, load, records, shares
from servers import AnabranchServer
from workers import Worker, say

from anabranch.models.files import open_model
from anabranch.models.registry import resolve

RATIO, SLOWEST, SPREAD = 0.9, 1.0, 0.1
"""Goals: of the engine's tokens/s at least this; p99 in seconds at most this; how far a key's share
may be from the others'."""

KEYS = {"many": 28, "one": 12, "two": 12, "three": 12}
"""Clients of each key: shares are those of keys, not of clients."""

WATCHER = "watcher"
IDLE_SECONDS = 60.0
"""Longest that branches may live when everybody has left; leases are shorter."""

LONG = (
    "vote(n=16, max_tokens=400)",
    "beam(width=4, fanout=4, step_tokens=64, rounds=16)",
    "particles(n=16, step_tokens=64, rounds=16)",
    "vote(n=8, max_tokens=800)",
)
PROBE_TOKENS, PAUSE = 8, 0.2
"""Length of the short request, and seconds between two of them."""

Figures = dict[str, Any]


# ---- next to the engine --------------------------------------------------------------------------


def requests(turn: int, count: int) -> list[Figures]:
    """A list of requests that nobody has seen: two of three plain, one of three a vote."""
    rng = random.Random(turn)
    found = []
    for place in range(count):
        asked = f"What is {rng.randrange(10, 10**6)} + {rng.randrange(10, 10**6)}? Explain it."
        found.append(
            {
                "messages": [{"role": "user", "content": asked}],
                "seed": rng.randrange(1 << 32),
                "max_tokens": 64,
                "strategy": "vote(n=4, max_tokens=64)" if place % 3 == 2 else None,
            }
        )
    return found


async def served(client: Client, asked: list[Figures]) -> Figures:
    """The seconds that a server takes for them side by side, and the tokens of each. Plain ones
    are streamed."""

    async def ask(request: Figures) -> int:
        strategy = request["strategy"]
        body = {"model": client.model, "messages": request["messages"], "seed": request["seed"]}
        if strategy is None:
            body |= {"max_tokens": request["max_tokens"], "ignore_eos": True}
            told = await client.stream(CHAT, body)
        else:
            told = await client.send(CHAT, {**body, "anabranch": {"strategy": strategy}})
        return int(told["usage"]["completion_tokens"])

    began = time.perf_counter()
    tokens = await asyncio.gather(*map(ask, asked))
    return {"seconds": time.perf_counter() - began, "tokens": tokens}


async def next_to_the_engine(client: Client, worker: Worker, repeats: int, count: int) -> Figures:
    """The same requests for both, in turn; who begins changes. Raises WorkerError, Surprise."""
    rates: dict[str, list[float]] = {"server": [], "engine": []}
    same = True

    async def server(turn: int) -> Figures:
        return await served(client, requests(turn, count))

    async def engine(turn: int) -> Figures:
        return await asyncio.to_thread(worker.ask, "replies", requests=requests(turn, count))

    for turn in range(repeats + 1):
        told = {}
        sides = {"server": server, "engine": engine}
        for name in sorted(sides, reverse=turn % 2 == 1):
            told[name] = await sides[name](turn)
        same = same and told["server"]["tokens"] == told["engine"]["tokens"]
        if turn:  # the first is to warm up
            for name, reply in told.items():
                rates[name].append(sum(reply["tokens"]) / reply["seconds"])
    ratios = [a / b for a, b in zip(rates["server"], rates["engine"], strict=True)]
    medians = {name: statistics.median(each) for name, each in rates.items()}
    return {
        "requests": count,
        "repeats": repeats,
        "tokens_per_second": medians,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "same_tokens": same,
    }


# ---- under long strategies -----------------------------------------------------------------------


async def under_strategies(long: Client, probes: dict[str, Client], seconds: float) -> Figures:
    """Seconds of short requests by each probe, while strategies run without a pause."""
    until = time.monotonic() + seconds

    async def think(strategy: str) -> None:
        while True:
            await long.send(CHAT, long.thinking(strategy, 1 << 16))

    async def probe(client: Client) -> list[float]:
        taken = []
        while time.monotonic() < until:
            await asyncio.sleep(PAUSE)
            began = time.perf_counter()
            await client.send(CHAT, client.chat(PROBE_TOKENS, ignore_eos=True))
            taken.append(time.perf_counter() - began)
        return taken

    thinking = [asyncio.ensure_future(think(strategy)) for strategy in LONG]
    try:
        await asyncio.sleep(min(3.0, seconds / 4))  # until all branches are there
        taken = await asyncio.gather(*map(probe, probes.values()))
        ended = [task.exception() for task in thinking if task.done()]
    finally:
        for task in thinking:
            task.cancel()
        await asyncio.gather(*thinking, return_exceptions=True)
    for fault in ended:
        if fault is not None:
            raise fault
    return {name: spread(each) for name, each in zip(probes, taken, strict=True)}


def spread(seconds: list[float]) -> Figures:
    """Median, 99th percentile (the nearest that was measured) and longest."""
    ordered = sorted(seconds)
    if not ordered:
        return {"count": 0}
    return {
        "count": len(ordered),
        "median": statistics.median(ordered),
        "p99": ordered[math.ceil(0.99 * len(ordered)) - 1],
        "max": ordered[-1],
    }


# ---- under load ----------------------------------------------------------------------------------


async def under_load(
    clients: dict[str, list[Client]], watch: Watch, seconds: float, page_bytes: int
) -> Figures:
    """What came of all that was asked, what each key got, and what is left of it."""
    before, since = await watch.look(), time.time()
    async with watch.watching():
        outcomes = await load([c for each in clients.values() for c in each], seconds)
    began, ended = watch.seen[0]["time"], watch.seen[-1]["time"]
    rows = watch.seen[-1]["rows"] - before["rows"]
    after = await watch.until_idle(IDLE_SECONDS)
    told = {name: await records(each[0], since) for name, each in clients.items()}
    tokens = sum(record["tokens"] for each in told.values() for record in each)
    return {
        "seconds": ended - began,
        "clients": {name: len(each) for name, each in clients.items()},
        **results(outcomes),
        "tokens_per_second": tokens / (ended - began),
        "rows_per_second": rows / (ended - began),
        "shares": shares(told),
        "before": before,
        "after": after,
        "beside_pages": beside_pages(watch.seen, page_bytes),
        "most": {k: max(seen[k] for seen in watch.seen) for k in ("branches", "used_pages")},
    }


def results(outcomes: Outcomes) -> Figures:
    """Counts by kind, median seconds, and what was not asked for."""
    kinds = sorted({*outcomes.served, *outcomes.failed, *outcomes.cut})
    return {
        "outcomes": {
            kind: {
                "served": outcomes.served[kind],
                "failed": outcomes.failed[kind],
                "cut": outcomes.cut[kind],
                "median": spread(outcomes.seconds.get(kind, [])).get("median"),
            }
            for kind in kinds
        },
        "surprises": outcomes.surprises,
    }


def beside_pages(seen: list[Figures], page_bytes: int) -> Figures:
    """Resident bytes of the server without the KV pages that it had ever used by then, which stay
    resident: before, in the middle of the load, at its end, and when all had left."""
    most, beside = 0, []
    for one in seen:
        most = max(most, one["used_pages"])
        beside.append(one["memory"] - most * page_bytes)
    places = {"before": 0, "quarter": len(beside) // 4, "half": len(beside) // 2, "after": -1}
    return {name: beside[place] for name, place in places.items()}


# ---- report --------------------------------------------------------------------------------------


def goals(figures: Figures) -> dict[str, bool]:
    """What was to be reached, as far as it was measured."""
    reached = {}
    if ratio := figures.get("ratio"):
        reached[f"ratio at least {RATIO}"] = ratio["ratio"] >= RATIO and ratio["same_tokens"]
    if latency := figures.get("latency"):
        slowest = max(each.get("p99", math.inf) for each in latency.values())
        reached[f"p99 at most {SLOWEST:g} s"] = slowest <= SLOWEST
    if told := figures.get("load"):
        fair = 1 / len(told["shares"])
        reached["no error that was not asked for"] = not told["surprises"]
        reached["nothing left"] = not any(
            told["after"][k] for k in ("running", "waiting", "operations", "branches", "held_pages")
        )
        reached[f"shares within {SPREAD:.0%} of fair"] = all(
            abs(share - fair) <= SPREAD * fair for share in told["shares"].values()
        )
    return reached


def report(figures: Figures, told: Figures, target: str | None) -> None:
    """Print what was measured, and write it to a file if one is asked for."""
    print_provenance(told)
    if ratio := figures.get("ratio"):
        rates = ratio["tokens_per_second"]
        print(f"\n{'tokens/s':20}{'server':>10}{'engine':>10}{'ratio':>8}   ratios of all repeats")
        line = (
            f"{ratio['requests']:4} requests       {rates['server']:10.1f}{rates['engine']:10.1f}"
        )
        print(f"{line}{ratio['ratio']:8.3f}   " + " ".join(f"{r:.3f}" for r in ratio["ratios"]))
        print("tokens of all replies are " + ("the same" if ratio["same_tokens"] else "DIFFERENT"))
    if latency := figures.get("latency"):
        print(f"\n{'short request, s':20}{'count':>10}{'median':>10}{'p99':>10}{'max':>10}")
        for name, each in latency.items():
            values = (f"{each[k]:10.3f}" for k in ("median", "p99", "max") if k in each)
            print(f"{name:20}{each['count']:10}" + "".join(values))
    if load_told := figures.get("load"):
        print_load(load_told)
    print()
    for goal, reached in goals(figures).items():
        print(f"{'reached' if reached else 'MISSED':9}{goal}")
    if target:
        write(target, {**told, **figures})


def print_load(told: Figures) -> None:
    print(f"\n{'under load':20}{'served':>10}{'failed':>10}{'cut off':>10}{'median s':>10}")
    for kind, each in told["outcomes"].items():
        median = "" if each["median"] is None else f"{each['median']:10.2f}"
        print(f"{kind:20}{each['served']:10}{each['failed']:10}{each['cut']:10}{median}")
    for surprise in told["surprises"]:
        print(f"  {surprise}")
    print(
        f"\n{told['seconds']:.0f} s, {told['tokens_per_second']:.1f} tokens/s written, "
        f"{told['rows_per_second']:.1f} rows/s computed"
    )
    print(f"\n{'key':20}{'clients':>10}{'share':>10}{'of fair':>10}")
    for name, share in told["shares"].items():
        print(
            f"{name:20}{told['clients'][name]:10}{share:10.1%}{share * len(told['shares']):10.2f}"
        )
    print(f"\n{'held':20}{'before':>10}{'after':>10}{'most':>10}")
    for name in ("running", "waiting", "operations", "branches", "held_pages", "used_pages"):
        most = told["most"].get(name, "")
        print(f"{name:20}{told['before'][name]:10}{told['after'][name]:10}{most:>10}")
    print(
        f"{'memory, MiB':20}{told['before']['memory'] >> 20:10}{told['after']['memory'] >> 20:10}"
    )
    sizes = "   ".join(f"{name} {size >> 20}" for name, size in told["beside_pages"].items())
    print(f"  beside KV pages:  {sizes}")


async def measure(
    server: AnabranchServer, model: Path, options: argparse.Namespace, figures: Figures
) -> None:
    """Measure what is asked for, into `figures`. Raises WorkerError, Surprise."""
    texts = random.Random(0)

    async with connections(server.url) as http:

        def client(key: str) -> Client:
            secret, own = server.keys[key], random.Random(texts.random())
            return Client(http, server.model, secret, own)

        if "ratio" in options.parts:
            with ExitStack() as stack:
                worker = Worker("anabranch", model, options.threads)
                stack.callback(worker.close)
                figures["ratio"] = await next_to_the_engine(
                    client("one"), worker, options.repeats, options.requests
                )
            say("measured the ratio")
        if "latency" in options.parts:
            probes = {"of the same key": client("one"), "of another key": client("two")}
            seconds = options.seconds / 5
            figures["latency"] = await under_strategies(client("one"), probes, seconds)
            say("measured the latency")
        if "load" in options.parts:
            clients = {key: [client(key) for _ in range(n)] for key, n in KEYS.items()}
            watch = Watch(client(WATCHER), server.pid)
            page = open_model(model).config.cache_shape.page_bytes
            figures["load"] = await under_load(clients, watch, options.seconds, page)
            say("measured the load")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--seconds", type=float, default=600.0, help="of load; latency has a fifth")
    parser.add_argument("--repeats", type=int, default=5, help="of the ratio")
    parser.add_argument("--requests", type=int, default=48, help="of a repeat")
    parts = ["ratio", "latency", "load"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write or print JSON")
    options = parser.parse_args()
    told = provenance(options.threads)
    options.threads = told["features"]["threads"]
    told |= {"model": options.model}
    model, figures = Path(resolve(options.model)), Figures()
    try:
        with AnabranchServer(model, options.threads, [*KEYS, WATCHER]) as server:
            told["server"] = server.settings
            asyncio.run(measure(server, model, options, figures))
            for line in server.said().splitlines():
                say(f"the server's log: {line}")
    except KeyboardInterrupt:
        say("interrupted")
    finally:
        report(figures, told, options.json)


if __name__ == "__main__":
    main()
