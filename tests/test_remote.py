"""Strategies over remote endpoints: same programs, what endpoints lack named, faults survived."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

import anabranch
from anabranch.bench.models import check_model, kernel, parameters
from anabranch.cli.main import app
from anabranch.errors import ContextError, InputError, RemoteError, UnsupportedError
from anabranch.lm import LM
from anabranch.program.budget import Budget
from anabranch.program.derived import score
from anabranch.program.engine import Engine
from anabranch.program.run import Run
from anabranch.remote import wire
from anabranch.remote.endpoint import Capabilities
from anabranch.remote.engine import RemoteEngine
from tests.endpoint import endpoint
from tests.scripted import ask, scripted
from tests.serving import serving

FOUR = "2 + 2 = 4.\nThe answer is 4."
REPLIES = {FOUR: 0.9, "2 + 2 = 5.\nThe answer is 5.": 0.1}
KEY = "sk-very-secret"


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "FIRST_WAIT", 0.01)


@contextlib.contextmanager
def connected(url: str, **options: object) -> Iterator[LM]:
    with anabranch.connect(url, **options) as lm:  # type: ignore[arg-type]
        yield lm


@pytest.fixture(scope="module")
def full() -> Iterator[LM]:
    """A model behind our own server, which can do all that is asked of endpoints."""
    with serving(REPLIES) as running, anabranch.load(f"{running.url}/v1") as lm:
        yield lm


# ---- an endpoint that can do everything --------------------------------------------------------


def test_our_own_server_can_do_everything(full: LM) -> None:
    engine = full.engine
    assert isinstance(engine, RemoteEngine)
    assert engine.endpoint.can == Capabilities(
        "completions", 8192, "vllm", True, 20, "echo", True, True
    )
    assert full.name == "scripted"
    assert parameters(full) is None
    assert kernel(full)["scores"] == "echo"


@pytest.mark.parametrize(
    "strategy",
    ["single", "vote(n=8)", "best(n=4)", "beam(width=2)", "dvts", "mcts", "adaptive", "pal(n=2)"],
)
def test_strategies_run_unchanged(full: LM, strategy: str) -> None:
    answer = full.solve("What is 2 + 2?", strategy)
    assert answer.answer == "4"
    assert any("the same seed may give another answer" in note for note in answer.notes)
    assert not full.engine.core.tree.roots  # nothing is left


def test_what_is_told_is_what_the_model_says(full: LM) -> None:
    options = ["2", "Yes", FOUR]

    async def seen(engine: Engine) -> tuple[list[float], dict[str, float]]:
        root = ask(engine, "What is 2 + 2?", Run(seed=3))
        scores = await score(root, options)
        begun = await root.fork().force("2 + 2 = ")
        await root.force("2 + 2 = ")
        top = await root.peek(2)
        step = await root.extend(100)
        again = await root.fork(at=root.opening).force("2 + 2 = " + step.text)
        # What is told of drawn text is what is told of given text, but for the end.
        assert again.logp == pytest.approx(begun.logp + math.fsum(step.logps[:-1]), abs=1e-4)
        root.run.drop_all()
        return scores, dict(
            zip(map(engine.text_of, [[t] for t in top.tokens]), top.logps, strict=True)
        )

    scores, likely = full.run(seen(full.engine))
    local_scores, local_likely = asyncio.run(seen(scripted(REPLIES)))
    assert scores == pytest.approx(local_scores, abs=1e-4)
    assert likely == pytest.approx(local_likely, abs=1e-4)


def test_forks_draw_each_for_themselves(full: LM) -> None:
    async def program(lm: LM) -> list[str]:
        root = ask(lm.engine, "What is 2 + 2?", Run(seed=1))
        await root.force("2 + 2 = ")
        branches = root.fork(100)
        steps = await asyncio.gather(*(b.extend(1) for b in branches))
        assert all(s.logq == s.logp for s in steps)
        root.run.drop_all()
        return [step.text for step in steps]

    drawn = full.run(program(full))
    # Binomial(100, 0.1): outside 1..24 with a probability below 1e-4.
    assert 1 <= drawn.count("5") <= 24
    assert set(drawn) == {"4", "5"}


def test_steps_stop_as_they_do_locally(full: LM) -> None:
    async def program(lm: LM) -> None:
        root = ask(lm.engine, "What is 2 + 2?", Run(seed=1))
        assert (await root.fork().extend(3)).stop == "limit"
        line = await root.fork().extend(100, until="\n")
        assert (line.stop, line.text[-1]) == ("until", "\n")
        cut = await root.fork().extend(100, until=re.compile("The"), keep=False)
        assert cut.text.endswith(".\n")
        test = await root.fork().extend(100, until=lambda step: len(step.text) >= 5)
        assert len(test.text) == 5
        whole = await root.fork().extend(100)
        assert whole.stop == "end"
        assert whole.tokens[-1] in lm.tokenizer.ends
        root.run.drop_all()

    full.run(program(full))


# ---- endpoints that lack something -------------------------------------------------------------

LESS = {
    "chat": ({}, Capabilities("chat", 4096, None, True, 5, None, True, True)),
    "strict": (
        {"strict": True},
        Capabilities("completions", 4096, None, True, 5, None, False, True),
    ),
    "samples only": (
        {"apis": ("chat",), "resumes": False, "top": None},
        Capabilities("chat", 4096, None, False, None, None, True, True),
    ),
    "plain": (
        {"apis": ("completions",), "top": None},
        Capabilities("completions", 4096, None, True, None, None, True, True),
    ),
}


@pytest.mark.parametrize("kind", LESS)
def test_finds_out_what_an_endpoint_can_do(kind: str) -> None:
    features, expected = LESS[kind]
    with endpoint(REPLIES, **features) as fake, connected(fake.url) as lm:
        assert lm.engine.endpoint.can == expected
        assert lm.solve("What is 2 + 2?", "vote(n=8)").answer == "4"


@pytest.mark.parametrize("strategy", ["single", "vote(n=3)", "adaptive", "refine(judge=agreement)"])
def test_sampling_alone_is_enough_for_some(strategy: str) -> None:
    features, _ = LESS["samples only"]
    with endpoint(REPLIES, **features) as fake, connected(fake.url) as lm:
        answer = lm.solve("What is 2 + 2?", strategy)
        assert answer.answer == "4"
        assert any("no log-probabilities" in note for note in answer.notes)


@pytest.mark.parametrize(
    ("kind", "strategy", "lacks"),
    [
        ("samples only", "best", "log-probabilities"),
        ("samples only", "rpc", "log-probabilities"),
        ("samples only", "beam", "log-probabilities"),
        ("samples only", "beam(judge=rollout)", "go on with a reply"),
        ("plain", "beam", "log-probabilities"),
        ("chat", "sharpen", "blend"),
        ("chat", "linc", "restrict"),
        ("chat", "beam(judge=self_rating)", "given text"),
    ],
)
def test_what_an_endpoint_lacks_is_named(kind: str, strategy: str, lacks: str) -> None:
    features, _ = LESS[kind]
    with (
        endpoint(REPLIES, **features) as fake,
        connected(fake.url) as lm,
        pytest.raises(UnsupportedError, match=re.escape(fake.url) + ".*" + lacks) as error,
    ):
        lm.solve("What is 2 + 2?", strategy)
    assert "docs/remote.md" in str(error.value)


def test_parameters_that_an_endpoint_does_not_know_are_refused() -> None:
    async def program(lm: LM) -> None:
        root = ask(lm.engine, "What is 2 + 2?", Run())
        with pytest.raises(UnsupportedError, match="top_k"):
            await root.fork().extend(3, top_k=5)
        with pytest.raises(UnsupportedError, match="bias"):
            await root.fork().extend(3, bias={5: 1.0})
        with pytest.raises(UnsupportedError, match="hidden"):
            await root.peek(hidden=True)
        root.run.drop_all()

    with endpoint(REPLIES, strict=True) as fake, connected(fake.url) as lm:
        lm.run(program(lm))
        sent = fake.bodies[-1]
        assert not sent.keys() & {"top_k", "min_p", "repetition_penalty", "logit_bias"}


# ---- budgets -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "features",
    [{}, {"overlong": True}, {"chunk": 7, "top": None}, {"chunk": 7, "top": None, "usage": False}],
)
@pytest.mark.parametrize("strategy", ["vote(n=8)", "adaptive"])
def test_budgets_hold(features: dict[str, object], strategy: str) -> None:
    with endpoint(REPLIES, **features) as fake, connected(fake.url) as lm:
        before = len(fake.bodies)
        budget = Budget(100)
        answer = lm.solve("What is 2 + 2?", strategy, budget=budget)
        assert answer.usage.prompt_tokens + answer.usage.sampled_tokens == budget.spent_tokens
        assert budget.spent_tokens <= 100
        asked = [body["max_tokens"] for body in fake.bodies[before:]]
        assert max(asked) <= 100 - answer.usage.prompt_tokens


@pytest.mark.parametrize("chunk", [1, 5])
def test_tokens_are_counted_as_the_endpoint_counts_them(chunk: int) -> None:
    with endpoint(FOUR, chunk=chunk, width=2, top=None) as fake, connected(fake.url) as lm:
        answer = lm.solve("What is 2 + 2?", "single")
        assert answer.usage.sampled_tokens == math.ceil(len(FOUR) / 2) + 1
        assert answer.text == FOUR


def test_characters_of_several_tokens() -> None:
    text = "Köln 🌊🌊 → 4.\nThe answer is 4."
    with endpoint(text) as fake, connected(fake.url) as lm:
        answer = lm.solve("What is 2 + 2?", "single")
        assert answer.text == text
        assert answer.usage.sampled_tokens == len(text.encode()) + 1


def test_time_that_runs_out_ends_a_reply() -> None:
    with endpoint(FOUR, delay=0.05) as fake, connected(fake.url) as lm:
        began = time.monotonic()
        answer = lm.solve("What is 2 + 2?", "single", seconds=0.4)
        assert time.monotonic() - began < 2
        assert "the budget was used up" in answer.notes
        assert FOUR.startswith(answer.text)
        assert answer.text


def test_cancelling_closes_the_connection() -> None:
    async def program(lm: LM) -> None:
        thinking = asyncio.create_task(lm.think("What is 2 + 2?", "vote(n=4)"))
        while fake.running < 4:
            await asyncio.sleep(0.01)
        thinking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await thinking
        while fake.gone < 4:
            await asyncio.sleep(0.01)

    with endpoint(FOUR) as fake, connected(fake.url) as lm:
        fake.faults[:] = ["hang"] * 4
        lm.run(asyncio.wait_for(program(lm), 10))
        assert lm.solve("What is 2 + 2?", "single").answer == "4"


def test_dropping_a_branch_ends_its_reply() -> None:
    async def program(lm: LM) -> None:
        branch = ask(lm.engine, "What is 2 + 2?", Run())
        step = asyncio.create_task(branch.extend(20))
        while fake.running < 1:
            await asyncio.sleep(0.01)
        branch.drop()
        assert (await step).stop == "dead"
        while fake.gone < 1:
            await asyncio.sleep(0.01)

    with endpoint(FOUR) as fake, connected(fake.url) as lm:
        fake.faults[:] = ["hang"]
        lm.run(asyncio.wait_for(program(lm), 10))


def test_connections_are_bounded() -> None:
    with endpoint(FOUR, delay=0.002) as fake, connected(fake.url, connections=3) as lm:
        lm.solve("What is 2 + 2?", "vote(n=16)")
        assert fake.peak == 3


# ---- faults ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["429", "500", "503", "cut", "garbage", "deep"])
def test_what_breaks_off_is_tried_again(fault: str) -> None:
    with endpoint(FOUR) as fake, connected(fake.url) as lm:
        fake.faults[:] = [fault] * 2
        assert lm.solve("What is 2 + 2?", "single").text == FOUR
        assert not fake.faults


def test_a_reply_cut_off_is_gone_on_with() -> None:
    with endpoint(FOUR) as fake, connected(fake.url) as lm:
        fake.faults[:] = ["cut"]
        before = len(fake.bodies)
        answer = lm.solve("What is 2 + 2?", "single(max_tokens=40)")
        asked = fake.bodies[before:]
        assert [body["max_tokens"] for body in asked] == [40, 38]
        assert asked[1]["messages"][-1] == {"role": "assistant", "content": FOUR[:2]}
        assert answer.usage.sampled_tokens == len(FOUR) + 1


@pytest.mark.parametrize(
    "fault", ["401", "418", "html", "gzip", "huge", "list", "empty", "error", "count", "logp"]
)
def test_faults_are_typed_errors_without_the_key(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with endpoint(FOUR) as fake, connected(fake.url, key_env="MY_KEY") as lm:
        fake.faults[:] = [fault]
        with pytest.raises(RemoteError, match=re.escape(fake.url)) as error:
            lm.solve("What is 2 + 2?", "single")
        assert not isinstance(error.value, wire.BrokenError)
        assert KEY not in str(error.value)
        assert set(fake.keys) == {f"Bearer {KEY}"}


def test_what_goes_on_failing_is_given_up() -> None:
    with endpoint(FOUR) as fake, connected(fake.url) as lm:
        fake.faults[:] = ["500"] * 20
        with pytest.raises(RemoteError, match="busy or failing"):
            lm.solve("What is 2 + 2?", "single")
        assert len(fake.faults) == 20 - wire.TRIES


def test_retry_after_is_heeded() -> None:
    def wait(told: str) -> float:
        return wire._wait(httpx.Response(429, headers={"Retry-After": told}))

    assert wait("3") == 3
    assert wait("1e9") == wire.LONGEST_WAIT
    assert wait("nan") == wait("-5") == wait("soon") == wait("") == 0
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
    assert 25 < wait(later) <= 30


def test_nobody_there() -> None:
    with endpoint(FOUR) as fake:
        url = fake.url
    with pytest.raises(RemoteError, match="is the server running"):
        anabranch.connect(url)


@pytest.mark.parametrize(
    "url",
    ["http://", "http://user:sk-very-secret@host/v1", "https://host/v1?key=sk-very-secret"],
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(InputError) as error:
        anabranch.load(url)
    assert KEY not in str(error.value)


def test_bad_keys_and_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", f"{KEY}\nx")
    for options in ({"key_env": "MY_KEY"}, {"key_env": "NO_SUCH"}, {"api": "x"}, {"timeout": 0}):
        with pytest.raises(InputError) as error:
            anabranch.connect("http://127.0.0.1:1/v1", **options)  # type: ignore[arg-type]
        assert KEY not in str(error.value)
    with pytest.raises(InputError, match="threads, offline"):
        anabranch.load("http://127.0.0.1:1/v1", threads=2, offline=True)


def test_text_that_is_too_long() -> None:
    with endpoint(FOUR) as fake, connected(fake.url) as lm:
        with pytest.raises(ContextError):
            lm.solve("x" * 40_000, "single")
        with pytest.raises(InputError, match="Unicode"):
            lm.solve("\udcff", "single")


# ---- doors -------------------------------------------------------------------------------------


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    trace = tmp_path / "trace.jsonl"
    with endpoint(FOUR) as fake:
        check_model(fake.url)
        arguments = ["solve", "What is 2 + 2?", "-m", fake.url, "--key-env", "MY_KEY", "--json"]
        done = CliRunner().invoke(app, [*arguments, "-s", "vote(n=2)", "--trace", str(trace)])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["answer"], told["model"]) == ("4", "fake")
    assert KEY not in trace.read_text() + done.output
