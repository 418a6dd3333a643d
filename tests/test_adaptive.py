"""Methods that spend where it pays, on models whose replies make the saving exact."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.errors import InputError
from anabranch.program.engine import Engine
from anabranch.program.run import Run
from anabranch.reason.adaptive import lead
from anabranch.reason.registry import parse
from tests.scripted import Rule, replies, scripted
from tests.test_reason import solve
from tests.test_refinement import Events, talk

FOUR, FIVE = "So the answer is 4.", "Now the answer is 5."


# ---- adaptive ------------------------------------------------------------------------------------


@given(st.integers(0, 12), st.integers(0, 12))
def test_the_lead_is_the_mass_of_the_beta_posterior(first: int, second: int) -> None:
    steps = 4000
    xs = [(i + 0.5) / steps for i in range(steps)]
    density = [x**first * (1 - x) ** second for x in xs]
    assert lead(first, second) == pytest.approx(
        math.fsum(density[steps // 2 :]) / math.fsum(density), abs=1e-5
    )


def test_adaptive_stops_early_where_all_agree_and_gives_the_votes_answer() -> None:
    vote = solve({FOUR: 1.0}, "vote(n=16)")
    easy = solve({FOUR: 1.0}, "adaptive(n=16, batch=1)")
    assert easy.answer == vote.answer == "4"
    assert len(easy.candidates) == 4  # 1 - 2**-4 < 0.95 <= 1 - 2**-5
    assert 4 * easy.usage.sampled_tokens == vote.usage.sampled_tokens


@pytest.mark.parametrize("seed", range(12))
def test_adaptive_is_the_beginning_of_the_vote_up_to_where_it_is_decided(seed: int) -> None:
    table = {FOUR: 0.6, FIVE: 0.4}
    long = solve(table, "vote(n=12)", seed=seed)
    short = solve(table, "adaptive(n=12, batch=1)", seed=seed)
    votes = {c.branch: c.answer for c in long.candidates}
    order = sorted(votes, key=lambda name: int(name.rpartition(".")[2]))
    said = [votes[name] for name in order]
    assert {c.branch: c.answer for c in short.candidates}.items() <= votes.items()
    for k in range(1, 13):
        counts = sorted((said[:k].count("4"), said[:k].count("5")))
        if counts[1] - counts[0] > 12 - k or lead(counts[1], counts[0]) >= 0.95:
            break
    assert len(short.candidates) == k


def test_adaptive_spends_all_samples_where_none_has_an_answer() -> None:
    answer = solve({"I do not know": 1.0}, "adaptive(n=7, batch=3, confidence=0)")
    assert len(answer.candidates) == 7


# ---- divide --------------------------------------------------------------------------------------


def test_divide_spends_more_only_where_the_samples_disagree() -> None:
    easy = solve({FOUR: 1.0}, "divide(n=3, more=9)")
    assert (easy.answer, len(easy.candidates)) == ("4", 3)
    split = {"The answer is 4.": 1 / 3, "The answer is 5.": 1 / 3, "The answer is 6.": 1 / 3}
    hard = solve(
        talk({"?": split, "One of these": FIVE}), "divide(n=3, more=9, threshold=0.7)", seed=3
    )
    assert (hard.answer, len(hard.candidates), hard.confidence) == ("5", 9, 1.0)


@pytest.mark.parametrize("second", ["filter", "prior", "both", "plain"])
def test_the_second_pass_sees_what_was_voted_for(second: str) -> None:
    seen: set[str] = set()

    def rule(prompt: str, reply: str) -> dict[str, float]:
        if "?\n" in prompt:
            seen.add(prompt)
        return dict(talk({"?": {FOUR: 0.5, FIVE: 0.5}})(prompt, reply))

    answer = solve(rule, f"divide(n=8, more=4, threshold=0.9, second='{second}')", seed=1)
    assert len(answer.candidates) == (12 if second == "plain" else 4)
    asked = "".join(seen)
    assert ("One of these is right: 4, 5." in asked) == (second in ("filter", "both"))
    both = f"One attempt:\n{FOUR}" in asked and f"One attempt:\n{FIVE}" in asked
    assert both == (second in ("prior", "both"))


def test_a_second_pass_without_answers_leaves_the_first() -> None:
    table = {"?": {FOUR: 0.6, FIVE: 0.4}, "One of these": "I cannot tell"}
    answer = solve(talk(table), "divide(n=8, more=4, threshold=0.9)", seed=1)
    assert len(answer.candidates) == 8
    assert "the second pass found no answer: the first votes" in answer.notes


# ---- early exit ----------------------------------------------------------------------------------


THINKING = "One. Wait, two. Wait, three. Wait, four. Wait, five. Wait, six. The answer is 9."


def thinker(answers: list[str]) -> Rule:
    """Thinks in six parts; made to answer after k of them, it gives `answers[k - 1]`."""

    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        thought, cue, said = reply.partition("\n\nThe answer is")
        if not cue:
            return replies({THINKING: 1.0})(prompt, reply)
        return replies({f" {answers[thought.count('Wait') - 1]}.": 1.0})(prompt, said)

    return rule


@pytest.mark.parametrize(
    ("stable", "exit_at", "expected"), [(1, 1, "1"), (2, 3, "7"), (3, 4, "7"), (4, 6, "9")]
)
def test_thinking_ends_where_the_answer_is_stable(stable: int, exit_at: int, expected: str) -> None:
    rule = thinker(["1", "7", "7", "7", "8"])
    answer = solve(rule, f"early_exit(stable={stable}, temperature=0)")
    assert answer.answer == expected
    assert answer.text.count("Wait") == min(exit_at, 5)
    if exit_at < 6:
        # The thinking, up to its cue, once; four answers behind it.
        kept = len("Wait".join(THINKING.split("Wait")[:exit_at]) + "Wait") + 4 * len(" 7.\0")
        assert answer.usage.kept_tokens == kept
        assert answer.confidence == 1.0


def test_an_exit_needs_enough_probes_to_agree() -> None:
    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        _, cue, said = reply.partition("\n\nThe answer is")
        if cue:
            return replies({" 1.": 0.5, " 2.": 0.5})(prompt, said)
        return replies({THINKING: 1.0})(prompt, reply)

    patient = solve(rule, "early_exit(probes=16, threshold=1, stable=1)")
    assert (patient.answer, patient.text) == ("9", THINKING)
    assert solve(rule, "early_exit(probes=16, threshold=0.5, stable=1)").answer in ("1", "2")


def test_thinking_without_end_is_asked_for_its_answer() -> None:
    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        thought, cue, said = reply.partition("\n</think>\n\n\nThe answer is")
        if cue:
            return replies({" 3.": 1.0})(prompt, said)
        return {"<think>"[len(thought) :] or "x": 1.0} if len(thought) < 7 else {"x": 1.0}

    answer = solve(rule, "early_exit(max_tokens=50)")
    assert answer.answer == "3"
    assert answer.text == f"<think>{'x' * 43}\n</think>\n\n\nThe answer is 3."


# ---- self-evaluation -----------------------------------------------------------------------------


def test_poor_beginnings_are_pruned_and_good_ones_finished_until_one_will_do() -> None:
    good, poor = "Good start. The answer is 4.", "Poor start. The answer is 5."

    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        if "starting over" in prompt:
            return replies({"Yes": 0.1, "No": 0.9} if "Good" in prompt else {"Yes": 1.0})(
                prompt, reply
            )
        return replies({good: 0.5, poor: 0.5})(prompt, reply)

    answer = solve(rule, "self_evaluate(n=8, at=6, keep=0.5, temperature=1)", seed=2)
    assert (answer.answer, len(answer.candidates)) == ("4", 1)
    # Eight beginnings and one end: all others stay beginnings.
    assert answer.usage.sampled_tokens == 8 * 6 + len(good) + 1 - 6
    picky = solve(rule, "self_evaluate(n=8, at=6, keep=0.5, temperature=1, threshold=1)", seed=2)
    assert (picky.answer, len(picky.candidates)) == ("4", 4)


# ---- speculative reasoning -----------------------------------------------------------------------


STEPS = ["one is fine\n", "two is fine\n", "three is fine\n", "The answer is 4.\n"]


def writer(steps: Sequence[str], grades: Mapping[str, int]) -> Rule:
    """Writes its own version of the next line; grades a chain by its last line."""

    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        if "one digit" in prompt:
            last = prompt.rpartition("\nHow good")[0].rstrip().rpartition("\n")[2]
            grade = next((g for word, g in grades.items() if word in last), 9)
            return replies({str(grade): 1.0})(prompt, reply)
        at = reply.count("\n")
        return {steps[at][len(reply.rpartition("\n")[2]) :]: 1.0} if at < 4 else {"": 1.0}

    return rule


@pytest.mark.parametrize("bad", [(), (0,), (1, 3), (0, 1, 2, 3)])
def test_no_poor_step_survives_and_the_large_model_writes_those_only(bad: tuple[int, ...]) -> None:
    drafts = [f"poor {i}\n" if i in bad else STEPS[i] for i in range(4)]
    engine, loaded = scripted(writer(STEPS, {"poor": 1})), list[str]()

    def load(name: str) -> Engine:
        loaded.append(name)
        return scripted(writer(drafts, {}))

    engine.loader = load
    for _ in range(2):
        events = Events("grade")
        run = Run(trace=events)
        answer = solve(engine, "spec_reason(draft='small', temperature=0)", run=run)
        assert (answer.answer, answer.text) == ("4", "".join(STEPS).strip())
        assert [event["accepted"] for event in events.seen] == [i not in bad for i in range(4)]
        written = sum(len(STEPS[i]) for i in bad)
        assert answer.usage.sampled_tokens == sum(map(len, drafts)) + written
    assert loaded == ["small"]
    engine.close()


def test_drafts_below_the_threshold_stay_out_and_first_steps_are_the_large_models() -> None:
    rule = writer(STEPS, {"fine": 6})
    for options, accepted in (
        ("threshold=0.6", 4),
        ("threshold=0.65", 1),
        ("own=3", 1),
        ("own=4", 0),
    ):
        events = Events("grade")
        solve(rule, f"spec_reason({options}, temperature=0)", run=Run(trace=events))
        assert sum(bool(event["accepted"]) for event in events.seen) == accepted


def test_an_engine_without_a_loader_says_so() -> None:
    with pytest.raises(InputError, match="no other models"):
        solve({FOUR: 1.0}, "spec_reason(draft='small')")
    with pytest.raises(InputError, match="not a text"):
        parse(f"spec_reason(draft='{'x' * 501}')")
    with pytest.raises(InputError, match="not a text"):
        parse("spec_reason(draft=3)")
    assert parse("spec_reason(draft='a/b.gguf')").values["draft"] == "a/b.gguf"
