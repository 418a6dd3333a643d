"""Methods that take a problem apart, on models whose replies make the effect exact."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.program.budget import Budget
from anabranch.program.run import Run
from anabranch.program.types import Answer, Problem
from anabranch.reason.folds import majority, weighted
from anabranch.reason.registry import fold_of, parse
from anabranch.reason.rule_cascade import FILTERS
from anabranch.reason.solve import think
from anabranch.reason.statements import read_statement, relevant, split_question
from tests.engines import run as run_checked
from tests.scripted import Rule, ask, replies, scripted
from tests.test_reason import solve
from tests.test_refinement import Events, talk

STORY = "Ann has 3 pens. Bob has 5 pens. The sky is blue.\nHow many pens does Ann have?"


def choose(rule: Rule, strategy: str, problem: Problem) -> Answer:
    """An answer to a problem with choices."""
    engine, run = scripted(rule), Run()
    program = think(
        problem, lambda p, run: ask(engine, p.text, run), parse(strategy), run, model="scripted"
    )
    return run_checked(engine, program)


# ---- the law that budgets are kept, on a problem that makes these methods work ----------------


@pytest.mark.parametrize(
    "name", ["organize", "evidence", "exclude", "fsm", "rule_cascade", "syzygy"]
)
@settings(max_examples=12)
@given(tokens=st.integers(len(STORY) + 4, 3000))
def test_no_budget_is_overspent(name: str, tokens: int) -> None:
    table = {"So the answer is 4.": 0.6, "Answer: 5": 0.4}
    answer = solve(table, name, problem=STORY, budget=Budget(tokens))  # checks the budget
    assert answer.answer
    assert 0 <= answer.confidence <= 1


# ---- statements ----------------------------------------------------------------------------------


def test_a_text_is_its_statements_and_its_question() -> None:
    assert split_question(STORY) == (
        ["Ann has 3 pens.", "Bob has 5 pens.", "The sky is blue."], "How many pens does Ann have?"
    )  # fmt: skip
    assert split_question("All is well. Max is 3.5 m. Max is big.")[1] == "Max is big."
    assert split_question("?") == ([], "?")
    assert split_question(" ") == ([], " ")


@given(seed=st.integers(0, 10**6))
def test_the_premises_of_a_proof_are_all_kept_and_in_order(seed: int) -> None:
    random_ = random.Random(seed)
    names = [f"{a}{b}umpus" for a in "bdgjlrstwz" for b in ("", "r", "l")]
    random_.shuffle(names)
    length = random_.randint(1, 6)
    chain, others = names[: length + 1], names[length + 1 :]
    forms = ["Every {} is a {}.", "All {}es are {}es.", "If something is a {}, then it is a {}."]
    proof = [f"Rex is a {chain[0]}."] + [
        random_.choice(forms).format(a, b) for a, b in itertools.pairwise(chain)
    ]
    distractors = [
        random_.choice(forms).format(random_.choice(chain), other) for other in others[:8]
    ]
    distractors += [f"Rex is a {other}." for other in others[8:12]]
    mixed = random_.sample(proof + distractors, len(proof + distractors))
    read = [statement for text in mixed if (statement := read_statement(text))]
    assert len(read) == len(mixed)
    assert [s.text for s in relevant(read, f"Is Rex a {chain[-1]}?")] == proof


# ---- organize ------------------------------------------------------------------------------------


def test_organize_drops_what_does_not_lead_to_the_question() -> None:
    seen: list[str] = []

    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        seen.append(prompt)
        return replies({"So the answer is yes.": 1.0})(prompt, reply)

    problem = "Every cat is a pet. Every dog is a wolf. Tom is a cat. Rex is a dog. Is Tom a pet?"
    answer = solve(rule, "organize", problem=problem)
    assert answer.answer == "yes"
    assert "Tom is a cat.\nEvery cat is a pet.\nIs Tom a pet?\n" in seen[-1]
    assert "Rex" not in seen[-1].partition("Is Tom")[0][-60:]
    assert len(seen[-1]) < len(problem) + 200


@pytest.mark.parametrize(("then", "fold"), [("vote(n=8)", majority), ("weighted(n=8)", weighted)])
def test_the_problem_is_handed_on_as_it_was_organized(then: str, fold: object) -> None:
    seen: list[str] = []

    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        seen.append(prompt)
        return replies({"The answer is yes.": 0.7, "Answer: no": 0.3})(prompt, reply)

    problem = "Every cat is a pet. Every dog is a wolf. Tom is a cat. Rex is a dog. Is Tom a pet?"
    named = parse(f"organize(then={then})")
    assert getattr(fold_of(named), "func", None) is fold
    answer = solve(rule, str(named), problem=problem)
    assert (answer.answer, len(answer.candidates)) == ("yes", 8)
    assert "Rex" not in seen[-1]


def test_the_model_is_asked_about_sentences_that_are_no_statements() -> None:
    seen: list[str] = []

    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        seen.append(prompt)
        table = {"Tom purrs": {"Yes": 0.9, "No": 0.1}, "Dogs bark": {"No": 1.0},
                 "Work it out": "The answer is yes."}  # fmt: skip
        return talk(table)(prompt, reply)

    answer = solve(rule, "organize", problem="Tom purrs. Dogs bark. Does Tom purr?")
    assert answer.answer == "yes"
    assert "Tom purrs.\nDoes Tom purr?" in seen[-1]
    assert "Dogs bark" not in seen[-1]


# ---- evidence ------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), quotes=st.integers(1, 4))
def test_quotes_are_stretches_of_the_text_whatever_the_model_wants(seed: int, quotes: int) -> None:
    """The model wants letters at random; what it may write is the text's own."""
    events = Events("evidence")
    alphabet = dict.fromkeys("Anehas3pbluThky.5B", 1.0)

    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        return alphabet if "Copy" in prompt else replies({"Answer: 3": 1.0})(prompt, reply)

    solve(
        rule,
        f"evidence(quotes={quotes}, quote_tokens=12, temperature=1)",
        problem=STORY,
        run=Run(seed=seed, trace=events),
    )
    found = events.seen[0]["quotes"]
    assert isinstance(found, list)
    assert 1 <= len(found) <= quotes
    context = "\n".join(split_question(STORY)[0])
    assert all(quote in context for quote in found)


@pytest.mark.parametrize("apart", [False, True])
def test_the_answer_comes_from_the_quotes_alone(apart: bool) -> None:
    seen: list[str] = []
    told, asked = split_question(STORY)
    problem = Problem(asked, context=" ".join(told)) if apart else Problem(STORY)

    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        seen.append(prompt)
        if "Copy" in prompt:
            said = reply.rpartition("- ")[2]
            return {"Ann has 3 pens.\n"[len(said) :] or "": 1.0}
        return replies({"The answer is 3.": 1.0})(prompt, reply)

    answer = solve(rule, "evidence", problem=problem)
    assert answer.answer == "3"
    assert seen[-1].startswith("Ann has 3 pens.\nHow many pens does Ann have?\n\nWork it out")
    assert "Bob" not in seen[-1]


def test_a_bare_question_is_answered_as_it_is() -> None:
    answer = solve({"The answer is 3.": 1.0}, "evidence")
    assert (answer.answer, answer.usage.forced_tokens) == ("3", 0)


# ---- exclude -------------------------------------------------------------------------------------


def relations(labels: Mapping[str, str]) -> Rule:
    """What contradicts, follows or is neutral, by answer; a chain of thought takes the last."""

    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        if "One of these is right" in prompt:
            last = prompt.partition("\n\nWork")[0].strip().rpartition("\n")[2]
            return replies({f"The answer is {last[:1]}.": 1.0})(prompt, reply)
        if "contradict the problem" in prompt:
            supposed = prompt.rpartition("the answer is: ")[2].partition(".")[0]
            return replies({labels[supposed]: 0.9, "x": 0.1})(prompt, reply)
        return replies({"It would follow.": 1.0})(prompt, reply)

    return rule


@pytest.mark.parametrize(
    ("labels", "expected", "weighed"),
    [
        ("Contradiction Neutral Contradiction", "B", 0),
        ("Contradiction Neutral Entailment", "C", 0),
        ("Entailment Neutral Neutral", "A", 0),
        ("Neutral Neutral Contradiction", "B", 2),
        ("Entailment Entailment Neutral", "B", 2),
        ("Contradiction Contradiction Contradiction", "C", 3),
    ],
)
def test_what_contradicts_is_excluded(labels: str, expected: str, weighed: int) -> None:
    choices = ("red", "green", "blue")
    rule = relations(dict(zip(choices, labels.split(), strict=True)))
    prompts: list[str] = []

    def watched(prompt: str, reply: str) -> Mapping[str, float]:
        prompts.append(prompt)
        return rule(prompt, reply)

    answer = choose(watched, "exclude", Problem("Which?", choices=choices))
    assert answer.answer == expected
    asked = {p for p in prompts if "One of these is right" in p}
    assert sum(f") {c}\n" in p for c in choices for p in asked) == weighed


def test_an_open_problem_is_decided_among_the_answers_it_gets() -> None:
    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        if "possible answer" in prompt:
            return replies({"4": 0.5, "5": 0.5})(prompt, reply)
        return relations({"4": "Contradiction", "5": "Neutral"})(prompt, reply)

    assert solve(rule, "exclude(candidates=12)", problem="How many?").answer == "5"


# ---- fsm -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("needed", "hops", "expected"), [(1, 20, 1), (2, 20, 2), (9, 4, 4)])
@pytest.mark.parametrize("bad", [0.0, 0.5])
def test_smaller_questions_are_asked_until_they_suffice(
    needed: int, hops: int, expected: int, bad: float
) -> None:
    """Answers are bad with a known chance, and then judged so."""
    summed: set[str] = set()

    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        good = prompt.count("good")
        if "whole question from" in prompt:
            summed.add(prompt)
        wrong = "bad" in prompt.rpartition("Answer this smaller")[2]
        return talk({
            "State the first": "Who wrote it?\n",
            "State the next": "And whose child is that?\n",
            "Answer this smaller": {"good\n": 1 - bad, "bad\n": bad} if bad else "good\n",
            "Do these answers": "Wrong" if wrong else "Enough" if good == needed else "More",
            "whole question from": f"The answer is {good}.",
        })(prompt, reply)  # fmt: skip

    for seed in range(1 if bad == 0 else 4):
        summed.clear()
        answer = solve(rule, f"fsm(hops={hops}, temperature=1)", problem="Whose?", seed=seed)
        (prompt,) = summed
        assert answer.answer == str(prompt.count("good"))
        if hops > needed:
            assert answer.answer == str(needed)
            assert "bad" not in prompt  # taken back
        elif not bad:
            assert answer.answer == str(expected)


# ---- rule cascade --------------------------------------------------------------------------------


def test_rules_fail_at_the_first_test_they_do_not_pass_and_cost_no_more() -> None:
    events, asked = Events("rules"), set[str]()
    fails = {"Swans are white.": None, "Some swans are birds.": 1, "Swans are black.": 0}

    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        if "State one general" in prompt:
            return replies({f"{text}\n": 1 / 3 for text in fails})(prompt, reply)
        if "Yes or No" in prompt:
            asked.add(prompt)
            at = fails[prompt.partition("Rule: ")[2].partition("\n")[0]]
            no = at is not None and FILTERS[at] in prompt
            return replies({"No" if no else "Yes": 1.0})(prompt, reply)
        assert "Rule: Swans are white.\n\n" in prompt
        return replies({"The answer is white.": 1.0})(prompt, reply)

    answer = solve(
        rule, "rule_cascade(rules=16)", run=Run(trace=events), problem="Two swans are white."
    )
    assert answer.answer == "white"
    assert events.seen[0]["passed"] == {
        text: len(FILTERS) if at is None else at for text, at in fails.items()
    }
    assert len(asked) == len(FILTERS) + 2 + 1


def test_without_a_good_rule_the_best_of_the_bad_is_used_and_said_so() -> None:
    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        if "State one general" in prompt:
            return replies({"A.\n": 0.5, "B.\n": 0.5})(prompt, reply)
        if "Yes or No" in prompt:
            good = "Rule: B." in prompt and FILTERS[0] in prompt
            return replies({"Yes" if good else "No": 1.0})(prompt, reply)
        return replies({f"The answer is {prompt.partition('Rule: ')[2][:1]}x.": 1.0})(prompt, reply)

    answer = solve(rule, "rule_cascade(rules=16)", problem="Facts.")
    assert answer.answer == "bx"
    assert any("no rule passed" in note for note in answer.notes)


# ---- syzygy --------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["Yes", "No"])
def test_conditions_that_change_nothing_are_left_out(missing: str) -> None:
    """The answer is right when "x is even" is in view; the other conditions do nothing."""
    events = Events("syzygy")
    conditions = ["x is even", "x is big", "x is nice"]

    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        cue, direct, said = reply.partition("The answer is")
        if direct and not cue and "Work" not in prompt:
            return replies({" 4.\n" if "x is even" in prompt else " 5.\n": 1.0})(prompt, said)
        return talk({
            "One digit": "2",
            "State one condition": {f"{c}\n": 1 / 3 for c in conditions},
            "Is a condition missing": missing,
            "Work it out": f"The answer is {4 if 'x is even' in prompt else 5}.",
        })(prompt, reply)  # fmt: skip

    for seed in range(4):
        run = Run(seed=seed, trace=events)
        answer = solve(rule, "syzygy(temperature=1)", problem="Which x?", run=run)
        event = events.seen[-1]
        found, kept = event["found"], event["kept"]
        assert isinstance(found, list)
        assert event["betti"] == 2
        seen = found if missing == "Yes" else found[:2]
        assert kept == [c for c in seen if c == "x is even"]
        assert answer.answer == ("4" if "x is even" in seen else "5")
