"""The scheduling policy, in isolation: pure, fair, and never more rows than a pass holds."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from anabranch.engine.scheduler import DecodeFirst, Waiting


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
