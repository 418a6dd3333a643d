"""Token healing: text put on a path is cut as if the path had been written in one piece."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

import anabranch
from anabranch.program.run import Run
from tests.engines import ByteTokenizer, make_engine, run

PAIR = 257
"""The token of "ab"."""


class Pairs(ByteTokenizer):
    """Bytes, except that "ab" is one token."""

    def encode(self, text: str, *, special: bool = False, start: bool = True) -> list[int]:
        tokens = list(text.encode())
        for i in range(len(tokens) - 2, -1, -1):
            if tokens[i : i + 2] == [97, 98]:
                tokens[i : i + 2] = [PAIR]
        return tokens

    def token_bytes(self, token: int) -> bytes:
        return b"ab" if token == PAIR else super().token_bytes(token)


def make():  # type: ignore[no-untyped-def]
    engine = make_engine()
    engine.tokenizer = Pairs()  # type: ignore[assignment]
    return engine


def test_the_last_token_and_the_text_are_cut_together() -> None:
    async def program() -> None:
        root = engine.open("x")
        first = await root.force("ca")
        healed = await root.force("bd")
        assert (first.tokens, healed.tokens) == ((99, 97), (PAIR, 100))
        assert root.tokens[-3:] == [99, PAIR, 100]
        assert root.text == "cabd"
        assert (healed.start.position, healed.taken_back) == (2, first.logps[-1])
        whole = await engine.open("x").force("cabd")
        assert first.logp + healed.logp == pytest.approx(whole.logp, abs=1e-4)
        assert math.fsum(healed.logps) == pytest.approx(whole.logps[1] + whole.logps[2], abs=1e-4)

    engine = make()
    run(engine, program())


def test_forks_heal_the_token_they_share_and_leave_the_others_theirs() -> None:
    async def program() -> None:
        root = engine.open("x", run=Run())
        await root.force("ca")
        kept, healed, ids, plain = root.fork(4)
        await healed.force("b")
        await kept.force("c")
        await ids.force([98])
        await plain.force("b", heal=False)
        assert [branch.tokens[2:] for branch in (healed, kept, ids, plain)] == [
            [PAIR],
            [97, 99],
            [97, 98],
            [97, 98],
        ]
        assert root.tokens[2:] == [97]
        root.run.drop_all()

    engine = make()
    run(engine, program())


def test_a_prompt_is_never_cut_anew() -> None:
    async def program() -> None:
        root = engine.open("xa")
        assert (await root.force("b")).tokens == (98,)

    engine = make()
    run(engine, program())


@pytest.mark.model
def test_newlines_of_a_real_tokenizer(model_path: Callable[[str], Path]) -> None:
    async def program() -> None:
        root = lm.engine.open("One.")
        await root.force("\n")
        await root.force("\nTwo")
        assert root.tokens == lm.tokenizer.prompt("One.") + lm.tokenizer.encode(
            "\n\nTwo", start=False
        )
        root.run.drop_all()

    with anabranch.load(model_path("smollm2-135m")) as lm:
        lm.run(program())
