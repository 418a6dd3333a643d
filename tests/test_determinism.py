"""`anabranch doctor --determinism`, and what it rests on: arithmetic that is alike everywhere."""

from __future__ import annotations

import json
import math
import sys
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from anabranch.backends.base import F32
from anabranch.backends.native import NativeBackend
from anabranch.cli import determinism
from anabranch.cli.app import app
from anabranch.cli.determinism import EXPECTED, cases, conditions, difference, examine
from anabranch.cli.doctor import doctor  # noqa: F401 - registers the command
from anabranch.models.config import RopeSpec
from anabranch.models.decoder import Decoder
from anabranch.models.rope import RopeTable, power, turn
from anabranch.program.play import Fact
from tests.engines import make_engine, run


def only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    chosen = [condition for condition in conditions() if condition.name in names]
    assert len(chosen) == len(names)
    monkeypatch.setattr(determinism, "conditions", lambda: chosen)


def diagnose(monkeypatch: pytest.MonkeyPatch) -> tuple[int, dict[str, dict[str, Any]]]:
    """What the command says of few and short programs."""
    few = list(cases(count=5, rounds=3))
    monkeypatch.setattr(determinism, "cases", lambda: few)
    result = CliRunner().invoke(app, ["doctor", "--determinism", "--json"])
    found = json.loads(result.stdout)
    assert found["ok"] is (result.exit_code == 0)
    return result.exit_code, {check["name"]: check for check in found["checks"]}


def test_the_digest_of_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the arithmetic of a pass was changed on purpose, `EXPECTED` becomes the digest shown."""
    only(monkeypatch, "plain")
    _, digest = examine()
    assert digest.detail == EXPECTED


def test_every_condition_on_small_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    code, checks = diagnose(monkeypatch)
    assert code == 1
    assert [name for name, check in checks.items() if check["status"] == "fail"] == ["digest"]
    assert "agrees with itself" in checks["digest"]["detail"]
    assert checks["memory"]["values"]["preempted_nodes"] > 0
    monkeypatch.setattr(determinism, "EXPECTED", checks["digest"]["values"]["digest"])
    assert {"shuffled", "chunks", "cache", "threads 2", "threads 3", "portable"} <= checks.keys()
    only(monkeypatch, "plain")
    assert diagnose(monkeypatch)[0] == 0


def test_last_bits_are_compared_and_differences_named(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Decoder.logits

    def nudged(self: Decoder, hidden: F32, rows: Any) -> F32:
        logits = honest(self, hidden, rows)
        assert isinstance(self.backend, NativeBackend)
        if self.backend.features()["threads"] == 2:
            logits[:] = np.nextafter(logits, np.float32(np.inf))
        return logits

    monkeypatch.setattr(Decoder, "logits", nudged)
    only(monkeypatch, "plain", "together", "threads 2")
    code, checks = diagnose(monkeypatch)
    assert code == 1
    assert [check["status"] for check in checks.values()] == ["ok", "ok", "fail", "fail"]
    for word in ("synthetic llama, program 0, branch ", ", position ", "expected ", "; got "):
        assert word in checks["threads 2"]["detail"]
    assert "agrees with itself" not in checks["digest"]["detail"]


def test_an_install_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anabranch.cli.determinism", None)
    result = CliRunner().invoke(app, ["doctor", "--determinism"])
    assert result.exit_code == 1
    assert "pip install" in result.stdout


def test_the_first_difference_in_words() -> None:
    a, b, c = Fact("here", "1"), Fact("there", "2"), Fact("here", "3")
    assert difference([a, b], [a, b]) == ""
    assert difference([a, b], [c, b]) == "here: expected 1; got 3"
    assert difference([a, b], [b]) == "here: expected 1; got 2 at there"
    assert difference([a, b], [a]) == "there: expected 2; got nothing at the end"


# --- arithmetic -----------------------------------------------------------------------------------


def exact_turn(angle: float) -> tuple[Decimal, Decimal]:
    """Cosine and sine by Taylor's series in 60 digits."""
    with localcontext() as context:
        context.prec = 60
        pi = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
        x = Decimal(angle)
        x -= (x / (2 * pi)).to_integral_value() * 2 * pi
        term, sums = Decimal(1), [Decimal(0), Decimal(0)]
        for k in range(60):
            sums[k % 2] += term if k % 4 < 2 else -term
            term *= x / (k + 1)
        return sums[0], sums[1]


@example(0.0)
@example(math.pi / 4)
@example(math.pi / 2)
@example(131_071.0)
@given(st.floats(0, 2e5))
def test_cosines_and_sines_are_exact_but_for_rounding(angle: float) -> None:
    for got, exact in zip(turn(np.array([angle])), exact_turn(angle), strict=True):
        assert abs(Decimal(float(got[0])) - exact) < Decimal("3e-16")


@pytest.mark.parametrize("spec", [RopeSpec(10_000.0), RopeSpec(500_000.0, factor=8.0)])
def test_rope_tables_are_rounded_right(spec: RopeSpec) -> None:
    """At every position to 131072; numpy's own float64 may itself be off in the last place."""
    table = RopeTable(spec, 16)
    rope = table.upto(131_072)
    angles = np.arange(131_072)[:, None] * table.frequencies
    for got, function in ((rope.cos, np.cos), (rope.sin, np.sin)):
        want = function(angles).astype(np.float32)
        apart = np.abs(got.view(np.int32).astype(np.int64) - want.view(np.int32))
        assert apart.max() <= 1
        assert np.count_nonzero(apart) <= 1e-5 * apart.size


@given(st.sampled_from([1e4, 5e5, 1e6, 1234.5]), st.integers(-128, 0), st.integers(2, 128))
def test_powers_are_rounded_once(base: float, above: int, below: int) -> None:
    assert power(base, above, below) == pytest.approx(base ** (above / below), rel=1e-14)
    if above % below == 0:
        assert power(base, above, below) == float(1 / Decimal(base) ** (-above // below))


def test_ties_among_the_likeliest_tokens_go_to_the_smaller_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also at the border, where what a partial sort keeps depends on the processor."""
    honest = Decoder.logits

    def tied(self: Decoder, hidden: F32, rows: Any) -> F32:
        logits = honest(self, hidden, rows)
        logits[:] = np.where(np.arange(logits.shape[1]) % 3 == 0, 1.0, 0.0)
        return logits

    monkeypatch.setattr(Decoder, "logits", tied)
    engine = make_engine("llama", "native")
    seen = run(engine, engine.open("abc").peek(103))
    assert list(seen.tokens) == [*range(0, 300, 3), 1, 2, 4]
