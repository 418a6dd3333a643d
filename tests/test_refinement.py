"""Methods that criticise and revise, on models whose replies make the effect exact."""

from __future__ import annotations

from collections.abc import Mapping

from tests.scripted import Rule, replies
from tests.test_reason import solve


def talk(table: Mapping[str, Mapping[str, float] | str]) -> Rule:
    """Replies by what was asked last: of all keys, the one that stands furthest down the prompt."""

    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        places = {key: prompt.rfind(key) for key in table}
        said = table[max(places, key=lambda key: places[key])]
        return replies({said: 1.0} if isinstance(said, str) else said)(prompt, reply)

    return rule


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
