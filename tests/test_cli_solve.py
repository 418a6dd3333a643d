"""`solve`, `chat` and `trace` as a user meets them, around a scripted model."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

import anabranch
from anabranch.cli import chat, solve, trace  # noqa: F401 - registers the commands
from anabranch.cli.app import app
from anabranch.program.trace import read_trace
from tests.scripted import Rule, scripted_lm

REPLIES = {"So it is four. The answer is 4.": 0.95, "Answer: 5": 0.05}


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes every command load a scripted model; returns a function that sets its rule."""

    def use(rule: Rule | Mapping[str, float]) -> list[Any]:
        loaded: list[Any] = []

        def load(name: str, **options: Any) -> Any:
            loaded.append(scripted_lm(rule))
            return loaded[-1]

        monkeypatch.setattr(anabranch, "load", load, raising=False)
        return loaded

    use(REPLIES)
    return use


def anabranch_(*arguments: str, text: str | bytes = "") -> Result:
    return CliRunner().invoke(app, list(arguments), input=text)


# ---- solve ---------------------------------------------------------------------------------------


def test_json_holds_exactly_what_it_promises_and_repeats(model: Any) -> None:
    runs = [anabranch_("solve", "--json", "-n", "6", "--seed", "7", "2+2?") for _ in range(2)]
    first, second = (json.loads(result.stdout) for result in runs)
    assert list(first) == [
        "answer", "text", "confidence", "strategy", "model", "seed", "usage", "seconds"
    ]  # fmt: skip
    assert first["answer"] == "4"
    assert first["strategy"] == "vote(n=6, temperature=0.8, top_p=1.0, max_tokens=512)"
    assert first["usage"]["kept_tokens"] <= first["usage"]["sampled_tokens"]
    assert first.pop("seconds") >= 0 <= second.pop("seconds")
    assert first == second
    assert "tokens" in runs[0].stderr


def test_plain_output_ends_with_tree_answer_confidence_and_usage(model: Any) -> None:
    result = anabranch_("solve", "-n", "4", "2+2?")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert not any(line.endswith(" ") for line in result.stdout.splitlines())
    lines = result.stdout.splitlines()
    assert [line.partition("  ")[0] for line in lines[:4]] == ["0.0", "0.1", "0.2", "0.3"]
    assert "└── 0.3" in result.stdout
    tree, text, answer, confidence, usage = (
        result.stdout.index(word)
        for word in ("prompt,", "\nSo it is", "\nAnswer: 4", "confidence", "sampled")
    )
    assert tree < text < answer < confidence < usage


def test_quiet_prints_the_answer_alone(model: Any) -> None:
    assert anabranch_("solve", "-q", "2+2?").output == "4\n"


def test_a_problem_from_stdin(model: Any) -> None:
    seen = []

    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        seen.append(prompt)
        return {"Answer: 1"[len(reply) :]: 1.0}

    model(rule)
    assert anabranch_("solve", "-q", "-", text="  What é?\n").output == "1\n"
    assert seen[0].startswith("What é?\n")


def test_options_reach_the_strategy_and_the_prompt(model: Any) -> None:
    seen = []

    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        seen.append(prompt)
        return {"x": 1.0}

    loaded = model(rule)
    result = anabranch_(
        "solve", "--json", "-s", "best(n=9)", "-n", "2", "--temperature", "1", "--max-tokens", "5",
        "--system", "Be brief.", "--budget", "1000", "--seconds", "60", "Say x",
    )  # fmt: skip
    found = json.loads(result.stdout)
    assert found["strategy"] == "best(n=2, temperature=1.0, top_p=1.0, max_tokens=5)"
    assert found["answer"] == "xxxxx"
    assert found["usage"]["sampled_tokens"] == 10
    assert seen[0] == "Be brief.\nSay x\n"
    assert len(loaded) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-n", "0", "?"], "[1, 1024]"),
        (["-n", "1000000", "?"], "[1, 1024]"),
        (["-s", "single", "-n", "2", "?"], "unknown parameter of single"),
        (["-s", "voat", "?"], "did you mean vote"),
        (["--temperature", "-1", "?"], "[0, 10]"),
        (["--max-tokens", "0", "?"], "[1, "),
        (["--budget", "0", "?"], "budget in tokens"),
        (["--seconds", "0", "?"], "budget in seconds"),
        (["--seconds", "nan", "?"], "budget in seconds"),
        (["--seed", "-1", "?"], "seed"),
        (["--threads", "0", "?"], "--threads"),
        (["  "], "the problem is empty"),
        ([""], "the problem is empty"),
        (["bad \udcff"], "not valid UTF-8"),
        (["--trace", "/nowhere/at/all", "?"], "cannot be written"),
        (["--trace", "/", "?"], "cannot be written"),
        ([], "PROBLEM"),
    ],
)
def test_bad_input_fails_before_a_model_is_loaded(
    model: Any, arguments: list[str], message: str
) -> None:
    loaded = model(REPLIES)
    result = anabranch_("solve", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not loaded


def test_stdin_that_is_not_utf8_is_refused(model: Any) -> None:
    result = anabranch_("solve", "-", text=b"\xff\xfe")
    assert (result.exit_code, "not valid UTF-8" in result.stderr) == (2, True)


def test_a_long_prompt_is_bad_input(model: Any) -> None:
    result = anabranch_("solve", "x" * 200_000)
    assert result.exit_code == 2
    assert "does not fit" in result.stderr


def test_a_saved_tree_is_drawn_again(model: Any, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    assert anabranch_("solve", "-q", "-n", "3", "--trace", str(path), "2+2?").exit_code == 0
    assert read_trace(path).header["model"] == "scripted"
    brief, full = anabranch_("trace", str(path)), anabranch_("trace", "--full", str(path))
    assert "answer: 4" in brief.stdout
    assert "└── 0.2" in brief.stdout
    assert "The answer is 4." in full.stdout
    tree = json.loads(anabranch_("trace", "--json", str(path)).stdout)
    assert [branch["id"] for branch in tree["branches"]] == ["0", "0.0", "0.1", "0.2"]
    assert tree["answer"] == "4"


def test_a_file_that_is_no_trace_is_the_files_fault(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("no")
    result = anabranch_("trace", str(tmp_path / "t"))
    assert (result.exit_code, "line 1: not JSON" in result.stderr) == (3, True)
    assert anabranch_("trace", str(tmp_path / "none")).exit_code == 2


def interrupting(reply: str, at: int) -> Rule:
    """Says a reply, and presses Ctrl-C when it has said that much of it."""
    pressed: list[bool] = []

    def rule(prompt: str, said: str) -> Mapping[str, float]:
        if len(said) == at and not pressed:
            pressed.append(True)
            os.kill(os.getpid(), signal.SIGINT)
        return {reply[len(said) :]: 1.0}

    return rule


def test_ctrl_c_shows_the_best_answer_so_far(model: Any) -> None:
    model(interrupting("The answer is 7. " + "But let me check again. " * 200, 60))
    result = anabranch_("solve", "2+2?")
    assert result.exit_code == 130
    assert "Answer: 7" in result.stdout
    assert "note: interrupted" in result.stdout


def test_ctrl_c_before_a_word_says_only_that(model: Any) -> None:
    model(interrupting("", 0))
    result = anabranch_("solve", "--json", "2+2?")
    assert (result.exit_code, result.stdout) == (130, "")


def test_hostile_replies_cannot_steer_the_terminal(model: Any) -> None:
    model({"\x1b[2J\x07[red]The answer is \x1b]0;x\x07 [bold]y[/bold]": 1.0})
    for arguments in (["-n", "2"], ["-q"], ["-s", "single"]):
        result = anabranch_("solve", *arguments, "?")
        assert "[bold]" in result.stdout
        assert not set(result.output) & set("\x1b\x07")


def test_the_live_view_shows_figures_and_answers(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr(solve, "plain_console", lambda **options: console)
    monkeypatch.setattr(solve, "PERIOD", 0.001)
    model({"[b]Thinking\x1b hard. The answer is 4.": 0.7, "Thinking. Answer: 5": 0.3})
    result = anabranch_("solve", "-n", "12", "--budget", "9000", "--seconds", "60", "2+2?")
    assert result.exit_code == 0
    shown = screen.getvalue()
    for part in ("branches thinking", "tokens/s", "tokens left", "s left", "[b]Think", "×"):
        assert part in shown
    assert "hard" in shown
    assert "\x1b hard" not in shown


# ---- chat ----------------------------------------------------------------------------------------


def echo(prompt: str, reply: str) -> Mapping[str, float]:
    """Replies with what was said so far, turns separated by bars."""
    text = prompt.strip().replace("\n", "|")
    return {text[len(reply) :]: 1.0}


def test_chat_remembers_undoes_and_starts_anew(model: Any) -> None:
    loaded = model(echo)
    said = ["a", "b", "/undo", "c", "/reset", "d", "/undo", "/undo", "/help", "", "/quit", "e"]
    result = anabranch_("chat", "--temperature", "0", text="\n".join(said))
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "a", "", "a|a|b", "", "forgotten", "a|a|c", "", "a new conversation", "d", "", "forgotten",
        "nothing to undo", *chat.HELP.splitlines(),
    ]  # fmt: skip
    # Five turns of 5 to 19 tokens; 35 of these differ, and none runs twice.
    assert loaded[0].engine.core.decoder.rows <= 35


def test_chat_with_system_text_ends_with_the_input(model: Any) -> None:
    model(echo)
    result = anabranch_("chat", "--system", "S", "--temperature", "0", text="a\n")
    assert (result.exit_code, result.stdout) == (0, "S|a\n\n")


def test_ctrl_c_stops_only_the_reply(model: Any) -> None:
    model(interrupting("x" * 3000, 20))
    result = anabranch_("chat", "--temperature", "0", "--max-tokens", "40", text="a\nb\n")
    assert result.exit_code == 0
    first, second = result.stdout.split("\n\n")[:2]
    assert first.endswith("x [stopped]")
    assert 20 <= first.count("x") < 40
    assert second == "x" * 40 + " [cut short]"


def test_a_turn_that_does_not_fit_leaves_the_conversation(model: Any) -> None:
    model(echo)
    result = anabranch_("chat", "--temperature", "0", text=f"a\n{'y' * 9000}\nb\n")
    assert result.exit_code == 0
    assert "does not fit" in result.stderr
    assert result.stdout == "a\n\na|a|b\n\n"


@pytest.mark.parametrize(
    "options", [["--temperature", "-1"], ["--top-p", "0"], ["--max-tokens", "0"], ["--seed", "-1"]]
)
def test_chat_refuses_bad_options_before_loading(model: Any, options: list[str]) -> None:
    loaded = model(REPLIES)
    assert anabranch_("chat", *options).exit_code == 2
    assert not loaded


def test_help_says_where_strategies_are_listed() -> None:
    text = " ".join(anabranch_("solve", "--help").stdout.split())
    assert "`anabranch strategies` lists them all" in text
