"""The scheduling policy, in isolation: pure, fair, and never more rows than a pass holds."""

from __future__ import annotations

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from anabranch.engine.scheduler import DecodeFirst, FairShare, Waiting, share_out


def waiting(ticket: int, rows: int, started: bool = True, priority: float = 0.0) -> Waiting:
    return Waiting(ticket, rows, started, priority, math.inf)


@given(
    st.lists(st.tuples(st.integers(0, 300), st.booleans(), st.integers(-1, 1)), min_size=1),
    st.integers(1, 64),
)
def test_grants_fit_the_pass(queue: list[tuple[int, bool, int]], rows: int) -> None:
    items = [waiting(k, *each) for k, each in enumerate(queue)]
    grants = DecodeFirst().plan(items, rows)
    assert grants
    assert sum(grant.rows for grant in grants) <= rows
    assert len({grant.ticket for grant in grants}) == len(grants)
    assert all(0 <= grant.rows <= items[grant.ticket].rows for grant in grants)


def test_running_branches_come_before_prompts_but_do_not_starve_them() -> None:
    branches = [waiting(k, 1) for k in range(40)]
    grants = DecodeFirst(prefill_share=0.25).plan([waiting(99, 500), *branches], 32)
    assert [grant.rows for grant in grants] == [1] * 24 + [8]
    assert grants[-1].ticket == 99


def test_priority_then_arrival() -> None:
    queue = [waiting(0, 1), waiting(1, 1, priority=2), waiting(2, 1)]
    assert [grant.ticket for grant in DecodeFirst().plan(queue, 2)] == [1, 0]


def test_a_started_prompt_is_finished_before_another_begins() -> None:
    queue = [waiting(0, 50, started=False), waiting(1, 50)]
    assert DecodeFirst().plan(queue, 60)[0].ticket == 1


# ---- shares --------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 50), max_size=8), st.integers(0, 100))
def test_shares_are_max_min_fair(wanted: list[int], rows: int) -> None:
    shares = share_out(wanted, rows)
    assert sum(shares) == min(rows, sum(wanted))
    assert all(0 <= share <= want for share, want in zip(shares, wanted, strict=True))
    short = [share for share, want in zip(shares, wanted, strict=True) if share < want]
    # Who did not get all has at most one less than anybody else.
    assert not short or min(short) >= max(shares) - 1


def of(
    group: str, count: int, served: float = 0.0, rows: int = 1, first: int = 0, had: int = 999
) -> list[Waiting]:
    return [Waiting(first + i, rows, True, 0.0, math.inf, group, served, had) for i in range(count)]


def test_one_group_alone_has_it_all() -> None:
    queue = of("a", 100)
    assert FairShare(crowded=8).plan(queue, 64) == DecodeFirst().plan(queue, 64)


def test_a_small_group_has_all_it_can_use_and_a_large_one_the_rest() -> None:
    grants = FairShare(crowded=32).plan([*of("many", 100), *of("one", 1, first=200)], 256)
    assert 200 in [grant.ticket for grant in grants]
    assert sum(grant.rows for grant in grants) == 32


def test_who_has_had_the_least_comes_first() -> None:
    queue = [
        *of("a", 4, served=9),
        *of("b", 4, served=2, first=10),
        *of("c", 4, served=5, first=20),
    ]
    assert [g.ticket for g in FairShare(crowded=2).plan(queue, 256)] == [10, 20]


def test_who_has_just_begun_comes_first_but_starves_nobody() -> None:
    def shares(new: int, old: int, **more: list[Waiting]) -> list[int]:
        queue = [*of("a", new, had=5, first=100), *of("a", old), *more.get("other", [])]
        granted = FairShare(crowded=32).plan(queue, 256)
        rows = Counter(grant.ticket // 100 for grant in granted for _ in range(grant.rows))
        return [rows[1], rows[0], rows[2]]

    assert shares(1, 60) == [1, 31, 0]
    assert shares(60, 60) == [60, 60, 0]
    assert shares(60, 10) == [60, 10, 0]
    assert shares(60, 0) == [60, 0, 0]
    other = of("b", 60, first=200)
    assert shares(1, 60, other=other) == [1, 15, 16]
    assert shares(60, 60, other=other) == [8, 8, 16]
    assert shares(60, 2, other=other) == [14, 2, 16]


def test_of_a_share_of_one_row_new_and_old_have_every_other() -> None:
    had = Counter[int]()
    for served in range(10):
        queue = [
            *of("a", 9, served, had=5),
            *of("a", 9, served, first=100),
            *of("b", 9, 99, first=200),
        ]
        (first, *_) = FairShare(crowded=1).plan(queue, 256)
        had[first.ticket // 100] += 1
    assert had == {0: 5, 1: 5}


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 40), st.integers(0, 2))),
    st.integers(1, 64),
    st.integers(1, 64),
)
def test_no_pass_is_empty_or_too_long(
    kinds: list[tuple[str, int, int]], rows: int, crowded: int
) -> None:
    queue = [
        Waiting(i, want, True, float(priority), math.inf, group, 0.0, 30 * (i % 4))
        for i, (group, want, priority) in enumerate(kinds)
    ]
    grants = FairShare(crowded=crowded).plan(queue, rows) if queue else []
    assert sum(grant.rows for grant in grants) <= rows
    assert bool(grants) == bool(queue)
    assert all(grant.rows >= 1 for grant in grants)
    assert len({grant.ticket for grant in grants}) == len(grants)
