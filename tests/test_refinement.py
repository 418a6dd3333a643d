"""Methods that criticise and revise, on models whose replies make the effect exact."""

from __future__ import annotations

from collections.abc import Mapping

from anabranch.program.budget import Budget
from tests.scripted import Rule, replies
from tests.test_reason import solve


def talk(table: Mapping[str, Mapping[str, float] | str]) -> Rule:
    """Replies by what was asked last: of all keys, the one that stands furthest down the prompt."""

    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        places = {key: prompt.rfind(key) for key in table}
        said = table[max(places, key=lambda key: places[key])]
        return replies({said: 1.0} if isinstance(said, str) else said)(prompt, reply)

    return rule


class Events:
    """Keeps the events of one kind."""

    def __init__(self, kind: str) -> None:
        self.kind, self.seen = kind, list[dict[str, object]]()

    def note(self, event: str, **fields: object) -> None:
        if event == self.kind:
            self.seen.append(fields)


WRONG, RIGHT = "2 + 2 = 5. The answer is 5.", "2 + 2 = 4. The answer is 4."


# ---- refine --------------------------------------------------------------------------------------


def test_refine_mends_what_it_finds_wrong() -> None:
    asked: list[str] = []

    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        asked.append(prompt)
        right = prompt.rpartition("2 + 2 =")[2].startswith(" 4")
        return talk({
            "sum?": WRONG,
            "Yes or No": {"Yes": 0.9, "No": 0.1} if right else {"Yes": 0.2, "No": 0.8},
            "Which line": "2 + 2 is 4.",
            "2 + 2 is 4.\nWrite": RIGHT,
        })(prompt, reply)  # fmt: skip

    answer = solve(rule, "refine(rounds=5)", problem="sum?")
    assert (answer.answer, answer.text) == ("4", RIGHT)
    assert [c.text for c in answer.candidates] == [RIGHT, WRONG]
    assert answer.confidence == 2 / 3
    # Both drafts lead to the answer.
    assert answer.usage.kept_tokens == len(WRONG) + len(RIGHT) + 2


def test_refine_leaves_alone_what_it_finds_right_and_stops_after_its_rounds() -> None:
    table: dict[str, Mapping[str, float] | str] = {
        "sum?": RIGHT, "Yes or No": {"Yes": 0.9, "No": 0.1}
    }  # fmt: skip
    answer = solve(talk(table), "refine", problem="sum?")
    assert [c.text for c in answer.candidates] == [RIGHT]
    table |= {"Yes or No": {"No": 1.0}, "Which line": "All.", "Write the whole": WRONG}
    for rounds in (1, 3):
        answer = solve(talk(table), f"refine(rounds={rounds})", problem="sum?")
        assert len(answer.candidates) == 1 + rounds
        assert answer.answer == "5"  # the last draft, whatever the first was


def test_a_threshold_decides_what_counts_as_right() -> None:
    table = {"sum?": WRONG, "Yes or No": {"Yes": 0.7, "No": 0.3}, "Which line": "x",
             "Write the whole": RIGHT}  # fmt: skip
    assert solve(talk(table), "refine(threshold=0.6)", problem="sum?").answer == "5"
    assert solve(talk(table), "refine(threshold=0.8)", problem="sum?").answer == "4"


# ---- critical questions --------------------------------------------------------------------------


def test_a_plan_is_rewritten_until_it_passes_and_then_followed() -> None:
    """The second of three plans is the first that passes seven of the eight questions."""
    yes, no = {"Yes": 0.9, "No": 0.1}, {"Yes": 0.1, "No": 0.9}
    for need, plans in ((6, 1), (7, 2), (8, 3)):

        def rule(prompt: str, reply: str) -> Mapping[str, float]:
            number = prompt.count("Plan ")
            failing = {1: ("complete", "follow from"), 2: ("complete",), 3: ()}[max(1, number)]
            asked = prompt.rpartition("?")[0].rpartition("\n")[2]
            return talk({
                "Do not solve it yet.": "Plan 1",
                "The plan fails": f"Plan {number + 1}",
                "Reply Yes or No.": no if any(word in asked for word in failing) else yes,
                "Follow this plan": f"By plan {number} the answer is {number}.",
            })(prompt, reply)  # fmt: skip

        answer = solve(rule, f"critical_questions(need={need}, rounds=5)")
        assert answer.answer == str(plans)
        assert len(answer.candidates) == 1
        # The plans lead to the answer.
        assert answer.usage.kept_tokens == plans * len("Plan 1\0") + len(answer.text) + 1


def test_a_plan_stands_unquestioned_where_the_answer_needs_the_budget() -> None:
    table = {"Do not solve": "Plan", "Reply Yes": {"No": 1.0}, "The plan fails": "Plan",
             "Follow this plan": RIGHT}  # fmt: skip
    answer = solve(talk(table), "critical_questions(max_tokens=90)", budget=Budget(500))
    assert answer.answer == "4"
    assert "the budget was kept for the answer: the plan stands unquestioned" in answer.notes
