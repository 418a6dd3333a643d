"""The arithmetic behind the benchmark's table: a wrong ratio would claim what is not so."""

from pathlib import Path

import pytest

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
