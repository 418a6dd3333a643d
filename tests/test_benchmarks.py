"""The arithmetic behind the benchmark's table: a wrong ratio would claim what is not so."""

from pathlib import Path

import pytest

from tests.serving import serving

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _as_scripts(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)


class Scripted:
    """A worker that takes the seconds it is told to."""

    def __init__(self, *seconds):
        self.seconds, self.asked = list(seconds), []

    def ask(self, task, **arguments):
        from workers import WorkerError

        self.asked.append(arguments)
        if not self.seconds:
            raise WorkerError("no more")
        return {"seconds": self.seconds.pop(0)}


@pytest.mark.parametrize(("unit", "ours", "theirs"), [("s", 2.0, 6.0), ("tokens/s", 30.0, 10.0)])
def test_a_ratio_says_how_many_times_as_fast_we_are(unit, ours, theirs):
    from reach import OURS, Row, table

    row = Row(1, "toy", "work", unit, {OURS: ours, "peer": theirs})
    assert row.ratio("peer") == 3.0
    assert row.ratio("absent") is None
    row.aim("peer", 3).aim("peer", 3.5).aim("absent", 1)
    assert [goal.reached for goal in row.goals] == [True, False]
    assert f"peer {theirs:g} (3.00x)" in table([row])
    assert table([row]).count("MISSED") == 1


def test_a_share_may_have_an_upper_bound():
    from reach import Goal

    assert Goal("of a step", 0.05, 0.08, "at most").reached
    assert not Goal("of a step", 0.09, 0.08, "at most").reached


def test_engines_take_turns_and_see_the_same_prompts():
    from workers import PATIENCE, interleave, medians

    ours, slow, broken = Scripted(1.0, 5.0, 2.0), Scripted(2 * PATIENCE, 1.0), Scripted()
    turns = [{"prompt": [k]} for k in range(3)]
    replies = interleave({"ours": ours, "slow": slow, "broken": broken}, 3, "first", turns)
    assert medians(replies) == {"ours": 2.0, "slow": 2 * PATIENCE}
    assert ours.asked == turns
    assert slow.asked == broken.asked == turns[:1]


def test_every_survivor_of_a_round_goes_on_twice():
    import random
    from collections import Counter

    from reach import Reach

    reach = Reach("toy", Path("toy.gguf"), threads=1, repeats=1)
    reach._rng = random.Random(1)
    for parent in reach._parents():
        assert set(Counter(parent).values()) == {2}
        assert all(parent[source] == source for source in parent)


class Thinker:
    """A worker that solves what it is told to, with answers as the contest asks for them."""

    def __init__(self, seconds, answers, fails_at=99):
        self.seconds, self.answers, self.fails_at, self.seeds = seconds, answers, fails_at, []

    def ask(self, task, **arguments):
        from workers import WorkerError

        self.seeds.append(arguments.get("seed"))
        asked = arguments["problem"]["text"] if "problem" in arguments else arguments["question"]
        if len(self.seeds) > self.fails_at:
            raise WorkerError("gone")
        answer = self.answers(asked.partition("\n")[0])
        return {"seconds": self.seconds, "answer": answer, "text": f"The answer is {answer}.",
                "tokens": 10}  # fmt: skip


def contest(ours, theirs):
    import itertools

    from thinking import OURS, Contest, Entrant

    from anabranch.program.types import Problem
    from anabranch.tasks.registry import Posed

    tokens = itertools.count(0, 25)
    pairs = [(Entrant(OURS, "vote"), [Entrant("peer", "sc"), Entrant("absent", "bon")])]
    rounds = [[Posed(Problem(f"{k}", kind="number"), f"{k}")] for k in range(4)]
    made = Contest(pairs, {OURS: ours, "peer": theirs}, lambda: next(tokens))
    made.run(rounds, minutes=1)
    return made


def test_methods_meet_on_the_same_problems_and_are_told_apart():
    from thinking import table

    ours = Thinker(0.5, lambda asked: asked)
    theirs = Thinker(3.0, lambda asked: asked if asked != "3" else "77")
    (one,) = contest(ours, theirs).matches()
    assert (one.problems, one.right, one.seconds, one.times) == (4, (1.0, 0.75), (0.5, 3.0), 6.0)
    assert one.tokens == (10, 25)
    assert one.reached
    # A seed comes once, so that no strategy draws what another drew; the first is to warm up.
    assert len(ours.seeds) == len(set(ours.seeds)) == 5
    assert "6.0x" in table([one], 16)
    assert "reached" in table([one], 16)
    assert "reached" not in table([one], 8)


def test_fast_and_wrong_is_no_goal_reached():
    ours, theirs = Thinker(0.1, lambda asked: "77"), Thinker(3.0, lambda asked: asked)
    (one,) = contest(ours, theirs).matches()
    assert one.times == 30
    assert not one.reached
    (one,) = contest(Thinker(1.0, str), Thinker(4.9, str)).matches()
    assert not one.reached


def test_a_peer_that_fails_is_compared_as_far_as_it_came(capsys):
    made = contest(Thinker(1.0, str), Thinker(2.0, str, fails_at=3))
    assert [one.problems for one in made.matches()] == [2]
    assert "peer sc is left out from here on: gone" in capsys.readouterr().err


def test_a_rule_is_held_against_the_instances_of_a_schema():
    from schemas import Finding, Tally, judge

    from anabranch.bench.scripted import ChatTokenizer

    def judged(schema, *cases):
        tests = [{"description": f"{d}", "data": d, "valid": valid} for d, valid in cases]
        group = {"description": "it", "schema": schema, "tests": tests}
        return judge(group, ChatTokenizer(), "file")

    # Its keys' order is the rule's, and 1.0 is an integer: what counts is that it can be said.
    pair = {"properties": {"é": {"type": "integer"}, "b": {}}, "required": ["é", "b"]}
    exact = judged(pair, ({"b": [], "é": 1.0}, True), ({"b": []}, False), ("text", True))
    assert exact == (Tally(schemas=1, compiled=1, exact=1), None)
    tally, found = judged({"type": "string"}, ("a", False), (1, True), ("b", True))
    assert tally == Tally(schemas=1, compiled=1, narrow=1, wide=1)
    assert found == Finding("file", "it", "", rejected=("1",), accepted=("a",))
    tally, found = judged({"if": {}}, (1, True))
    assert tally == Tally(schemas=1, refused=1)
    assert "if" in found.why


# ---- the server under load -----------------------------------------------------------------------

LINES = {"2 + 2 is 4.\nThe answer is 4.": 0.6, "1 + 1 is 2.\nThe answer is 2.": 0.4}


def clients_of(http, count=1, key="none"):
    import random

    from load import Client

    return [Client(http, "scripted", key, random.Random(i)) for i in range(count)]


def test_every_kind_of_work_is_served_and_leaves_nothing_behind(tmp_path):
    import asyncio
    import os
    import time

    from load import WORK, Outcomes, Watch, connections, load, records, shares

    from anabranch.serve.keys import new_key

    keys = {name: new_key(tmp_path / "keys.toml", name) for name in ("a", "b", "watcher")}

    async def work(url):
        async with connections(url) as http:
            (client,) = clients_of(http, key=keys["a"])
            watch, began, outcomes = Watch(client, os.getpid()), time.time(), Outcomes()
            for kind in WORK:
                await outcomes.add(client, kind)
            assert not outcomes.surprises
            assert set(outcomes.served) == {kind.__name__ for kind in WORK}
            async with watch.watching():
                crowd = clients_of(http, 4, keys["a"]) + clients_of(http, 4, keys["b"])
                under_load = await load(crowd, 1.5)
            assert not under_load.surprises
            assert under_load.served.total() + under_load.cut.total() >= 8
            left = await watch.until_idle(30)
            assert not any(left[k] for k in ("running", "waiting", "branches", "held_pages"))
            told = {name: await records(c, began) for name, c in (("a", client), ("b", crowd[-1]))}
            assert all(told.values())
            assert not await records(client, time.time() + 60)
            assert sum(shares(told).values()) == pytest.approx(1)

    with serving(LINES, keys=tmp_path / "keys.toml", records=tmp_path / "records.db") as running:
        asyncio.run(work(running.url))


def test_what_nobody_asked_for_is_noticed():
    import asyncio

    from load import Outcomes, connections, plain, refused, streamed

    async def work(url):
        async with connections(url) as http:
            (client,) = clients_of(http)
            outcomes = Outcomes()
            client.model = "elsewhere"
            for kind in (plain, streamed, refused):
                await outcomes.add(client, kind)
            assert outcomes.failed == {"plain": 1, "streamed": 1}
            assert outcomes.served == {"refused": 1}
            assert "404" in outcomes.surprises[0]

    with serving(LINES) as running:
        asyncio.run(work(running.url))


def test_the_goals_of_serving_can_be_missed():
    from serving import beside_pages, goals, spread

    told = spread([0.1] * 98 + [0.5, 0.7])
    assert (told["median"], told["p99"], told["max"]) == (0.1, 0.5, 0.7)
    good = {
        "ratio": {"ratio": 0.95, "same_tokens": True},
        "latency": {"short": told},
        "load": {
            "shares": {"a": 0.49, "b": 0.51},
            "surprises": [],
            "after": dict.fromkeys(
                ("running", "waiting", "operations", "branches", "held_pages"), 0
            ),
        },
    }
    assert all(goals(good).values())
    assert len(goals(good)) == 5
    bad = {
        "ratio": {"ratio": 0.95, "same_tokens": False},
        "latency": {"short": told | {"p99": 1.1}},
        "load": {
            "shares": {"a": 0.4, "b": 0.6},
            "surprises": ["500"],
            "after": good["load"]["after"] | {"branches": 1},
        },
    }
    assert not any(goals(bad).values())
    assert goals({}) == {}
    # A page that was used once stays resident, and is no leak.
    seen = [{"memory": 100 + m, "used_pages": n} for m, n in ((0, 0), (20, 2), (21, 1), (31, 3))]
    assert beside_pages(seen, 10) == {"before": 100, "quarter": 100, "half": 101, "after": 101}
