"""Whose turn it is: priorities of keys, requests and batches, and deadlines."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import openai
import pytest

from anabranch.engine.scheduler import FairShare, Grant, Waiting
from anabranch.serve.admission import Admission
from anabranch.serve.calls import Call, begin
from anabranch.serve.errors import Refusal
from anabranch.serve.metrics import Metrics
from anabranch.serve.wire import Turn
from tests.serving import Running, serving
from tests.test_serve_keys import account, keys_in
from tests.test_serve_own import ASKED, User, asking, rule

ENDLESS: Any = [{"role": "user", "content": "for ever"}]


class Watched(FairShare):
    """Remembers what it was asked to plan: priorities, and whether there were deadlines."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, float, bool]] = set()

    def plan(self, waiting: Sequence[Waiting], rows: int) -> list[Grant]:
        self.seen |= {(w.group, w.priority, w.deadline < math.inf) for w in waiting}
        return super().plan(waiting, rows)


@pytest.fixture
def server() -> Iterator[Running]:
    with serving(rule, running=1) as running:
        yield running


def test_every_way_to_ask_reaches_the_engine_with_its_turn(tmp_path: Path) -> None:
    path, keys = keys_in(tmp_path, alice={"priority": 5}, bob={})
    with serving(rule, keys=path, folder=tmp_path / "folder") as server:
        alice, bob = User(server, keys["alice"]), User(server, keys["bob"])
        client = alice.client
        policy = server.lm.engine.core.policy = Watched()

        def seen() -> set[tuple[str, float, bool]]:
            """Since it was last asked."""
            found, policy.seen = policy.seen, set()
            return found

        turn: Any = {"anabranch": {"priority": -2, "deadline": 600}}
        client.chat.completions.create(model="scripted", messages=ASKED)
        assert seen() == {("alice", 5, False)}
        client.chat.completions.create(model="scripted", messages=ASKED, extra_body=turn)
        client.completions.create(model="scripted", prompt="x", max_tokens=3, extra_body=turn)
        client.embeddings.create(model="scripted", input="x", extra_body=turn)
        client.responses.create(model="scripted", input="x", extra_body=turn)
        assert seen() == {("alice", 3, True)}
        # A judge that asks aside, after roots of its own, in its request's turn.
        asked = {**turn["anabranch"], "strategy": "weighted(n=2, judge=p_true)"}
        reply = client.chat.completions.create(
            model="scripted",
            messages=ASKED,
            extra_body={"anabranch": asked, "structured_outputs": {"choice": ["4", "5"]}},
        )
        assert reply.model_extra is not None
        assert reply.model_extra["anabranch"]["usage"]["prompt_tokens"] > 2 * len(
            ASKED[0]["content"]
        )
        assert seen() == {("alice", 3, True)}
        for priority in (0, -4):
            root = alice.open(priority=priority)
            alice.ask(f"/v1/branches/{root['id']}/extend", {"limit": 3}, secret=root["secret"])
            alice.ask(f"/v1/sessions/{root['session']}", method="DELETE", secret=root["secret"])
            assert seen() == {("alice", 5 + priority, False)}
        alice.until(
            alice.batch(asking("x"), asking("y", **turn)), lambda b: b.status == "completed"
        )
        assert seen() == {("alice", -95, False), ("alice", -97, True)}
        bob.client.chat.completions.create(model="scripted", messages=ASKED)
        assert seen() == {("bob", 0, False)}


def test_a_request_can_only_step_back(server: Running) -> None:
    for told in ({"priority": 1}, {"priority": -11}, {"priority": -0.5}, {"deadline": 0}):
        with pytest.raises(openai.BadRequestError, match=next(iter(told))):
            server.client.chat.completions.create(
                model="scripted", messages=ASKED, extra_body={"anabranch": told}
            )


def test_places_go_by_priority_then_shares_then_deadlines() -> None:
    async def main() -> list[str]:
        admission = Admission(1, 100)
        order: list[str] = []

        async def work(name: str, owner: Any, **turn: Any) -> None:
            call = Call(owner, name, metrics=Metrics(), stopping=asyncio.Event())
            call.wants(Turn(**turn))
            begin(call)
            async with admission.place():
                order.append(name)
                await asyncio.sleep(0)

        a, b, first = account("a"), account("b"), account("first", priority=1)
        async with asyncio.TaskGroup() as group:
            for name, owner, turn in (
                ("begins", a, {}),
                ("behind", a, {"priority": -1, "deadline": 50}),
                ("a, whenever", a, {}),
                ("a, later", a, {"deadline": 100}),
                ("a, soon", a, {"deadline": 60}),
                ("b, too late to come before a's", b, {"deadline": 55}),
                ("of the first key", first, {}),
                ("behind, but of the first key", first, {"priority": -1}),
            ):
                group.create_task(work(name, owner, **turn))
        assert (admission.running, admission.waiting) == (0, 0)
        return order

    assert asyncio.run(main()) == [
        "begins",
        "of the first key",
        "a, soon",
        "a, later",
        "a, whenever",
        "b, too late to come before a's",
        "behind, but of the first key",
        "behind",
    ]


def test_a_priority_comes_before_all_fair_shares() -> None:
    def of(group: str, first: int, priority: float) -> list[Waiting]:
        return [Waiting(first + i, 1, True, priority, math.inf, group) for i in range(20)]

    queue = [*of("many", 0, 0), *of("one", 100, 1), *of("batch", 200, -100)]
    granted = {grant.ticket for grant in FairShare(crowded=32).plan(queue, 256)}
    assert granted == {*range(100, 120), *range(12)}


def test_who_waits_longer_than_its_deadline_is_told_so(server: Running) -> None:
    client = server.client
    with client.chat.completions.create(model="scripted", messages=ENDLESS, stream=True) as held:
        next(iter(held))
        for options in ({}, {"stream": True}):
            with pytest.raises(openai.InternalServerError) as caught:
                client.chat.completions.create(
                    model="scripted",
                    messages=ASKED,
                    extra_body={"anabranch": {"deadline": 0.05}},
                    **options,  # type: ignore[call-overload]
                )
            assert (caught.value.status_code, caught.value.code) == (504, "deadline")
        assert server.app.state.admission.waiting == 0
    assert client.chat.completions.create(model="scripted", messages=ASKED).choices


@pytest.mark.parametrize("strategy", [None, "single(max_tokens=100000)"])
def test_what_runs_at_its_deadline_ends_with_what_it_has(
    server: Running, strategy: str | None
) -> None:
    """The server itself would let it run for ten minutes."""
    told = {"deadline": 0.3, **({"strategy": strategy} if strategy else {})}
    reply = server.client.chat.completions.create(
        model="scripted", messages=ENDLESS, extra_body={"anabranch": told}
    )
    (choice,) = reply.choices
    said: Any = choice.message
    assert len(said.content if strategy is None else said.reasoning) > 3
    assert strategy is not None or choice.finish_reason == "length"


def test_a_deadline_goes_on_from_the_queue_to_the_work() -> None:
    """It counts from the request's arrival, so what is left of it is what may be computed."""

    async def main() -> None:
        call = Call(account("a"), "id", metrics=Metrics(), stopping=asyncio.Event())
        call.wants(Turn(deadline=1e-9))
        begin(call)
        admission = Admission(1, 10)
        async with admission.place():  # a place that is free is given, to end at once
            with pytest.raises(Refusal, match="deadline"):
                async with admission.place():
                    pass
        assert (admission.running, admission.waiting) == (0, 0)

    asyncio.run(main())
