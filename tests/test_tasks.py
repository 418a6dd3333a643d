"""Tasks: the same problems from the same seed, with answers that are right and can be read."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

from anabranch.errors import InputError
from anabranch.program.answers import extract
from anabranch.tasks import blocks, hanoi, jumping, river
from anabranch.tasks.diagnosis import tests_needed as worst_case
from anabranch.tasks.registry import Posed, difficulty, parse, problems, tasks
from anabranch.tasks.search import Puzzle, distances, shortest
from anabranch.tasks.steps import calculate

OUTSIDE = {"file", "gym"}  # their problems come from elsewhere: tests/test_tasks_from_elsewhere.py
NAMES = [entry.name for entry in tasks() if entry.name not in OUTSIDE]
SWEPT = [e.name for e in tasks() if difficulty(e) and e.name not in OUTSIDE]
FEW = {"river", "hanoi"}
"""Puzzles that have few positions where they are small."""

VARIANTS = [
    *("arithmetic(digits=3)", "equations(digits=4)", "words(operations=9)", "deduction(hops=6)"),
    *("strings(operations=6)", "chain(operations=30)", "countdown(numbers=7)", "zebra(houses=4)"),
    *("ordering(people=6)", "knights(people=7)", "proofs(depth=8)", "hanoi(disks=6)"),
    *("procedures(on='string', steps=25)", "procedures(on='list', steps=25)"),
    *(
        "procedures(on='number', steps=25)",
        "river(pairs=5)",
        "river(pairs=3, boat=2)",
        "blocks(blocks=5)",
    ),
    *("jumping(checkers=5)", "diagnosis(candidates=10)", "diagnosis(ask='tests')"),
    *("habits(version='original')", "instructions(rules=8)", "needles(needles=4, words=2000)"),
]


def answered(posed: Posed, said: str) -> float:
    """The score of a text, read as strategies read it."""
    read = extract(said, posed.problem)
    return 0.0 if read is None else posed.score(read)


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_and_the_place_decide_a_problem(name: str) -> None:
    some, more = problems(name, 20, seed=3), problems(name, 40, seed=3)
    assert some == more[:20]
    assert problems(name, 20, seed=4) != some
    assert len({posed.problem for posed in more}) > (12 if name in FEW else 20)


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("arithmetic", "2728d15c65079077"),
        ("words", "380146ea2da4e1c0"),
        ("strings", "68c2c42b44a67300"),
        ("equations", "cdd352c6c433ef92"),
        ("deduction", "242e170fa3de1823"),
    ],
)
def test_problems_stay_what_they_were(name: str, digest: str) -> None:
    """Results from before are about the same problems, whatever parameters a task gets."""
    posed = [(p.problem.text, p.answer) for p in problems(name, 60, 3)]
    assert hashlib.sha256(json.dumps(posed).encode()).hexdigest()[:16] == digest


@pytest.mark.parametrize("task", NAMES + VARIANTS)
def test_the_reference_is_right_and_what_differs_is_wrong(task: str) -> None:
    for posed in problems(task, 30, seed=1):
        assert answered(posed, posed.reference) == 1, posed
        assert posed.check(posed.answer)
        assert posed.problem.check is not None
        assert posed.problem.check(posed.answer)
        assert posed.prefix(posed.reference) in (None, 1), posed
        assert answered(posed, "The answer is 4711.") < 1
        if posed.problem.kind == "whole":
            assert answered(posed, "") == 0
        else:
            assert answered(posed, f"The answer is {posed.answer}7.") == 0, posed
            assert answered(posed, "I do not know.") == 0


@pytest.mark.parametrize("name", SWEPT)
def test_a_harder_problem_takes_more(name: str) -> None:
    """The reference, or what is asked, grows with the difficulty; what a task is grows in one."""
    entry = parse(name).entry
    parameter = difficulty(entry)
    assert parameter is not None
    assert entry.extra["counts"]
    low = int(parameter.limits.low)  # type: ignore[union-attr]
    sizes = []
    for step in (0, 1, 2):
        named = str(parse(name).change(**{parameter.name: low + (50 if low > 9 else 1) * step}))
        made = problems(named, 20)
        sizes.append(
            statistics.fmean(len(p.reference + p.problem.text + p.problem.context) for p in made)
        )
    assert sizes[0] < sizes[1] < sizes[2]


@pytest.mark.parametrize("task", NAMES)
def test_any_text_can_be_scored(task: str) -> None:
    nasty = [
        *("", "\ud800", "((((" * 5000, "9" * 100_000, "1/0 = 0", "-" * 9000, "AB, " * 50_000),
        *("Step 1: " * 20_000, "Step 99999999999: x", "1 = 1\n" * 20_000, "x is not " * 30_000),
        *("MC" * 9000, "\x00", "٣ + ٣ = ٦", "2" + " * 2" * 50 + " = 3", "The answer is [[[["),
    ]
    posed = problems(task, 1)[0]
    for text in nasty:
        assert 0 <= posed.score(text) <= 1
        assert 0 <= answered(posed, text) <= 1
        assert 0 <= (posed.prefix(text) or 0) <= 1
        assert posed.by_habit(text) in (True, False)


def test_the_answer_is_rarely_a_number_of_the_problem() -> None:
    for name in ("arithmetic", "chain", "words", "needles"):
        made = problems(name, 200)
        given = [posed.answer in re.findall(r"\d+", posed.problem.text) for posed in made]
        assert sum(given) < 30, name


# --- step checks ---


def test_prefix_accuracy_is_the_share_before_the_first_wrong_step() -> None:
    for task in ("procedures(steps=8)", "chain(operations=8)", "strings(operations=5)"):
        for posed in problems(task, 20):
            for wrong in range(len(posed.steps)):
                steps = list(posed.steps)
                steps[wrong] += "1"
                got = posed.prefix("\n".join(steps))
                assert got == wrong / len(steps), (posed, steps)
            half = posed.steps[: len(posed.steps) // 2]
            assert posed.prefix("\n".join(half)) == len(half) / len(posed.steps)
            assert posed.prefix("no steps at all") == 0


def test_steps_may_be_told_at_length() -> None:
    posed = problems("procedures(on='number', steps=3)", 1)[0]
    states = [step.partition(": ")[2] for step in posed.steps]
    told = "".join(f"**Step {i}:** Do this.\n{s} + 0 = {s}\n\n" for i, s in enumerate(states, 1))
    assert posed.prefix(f"{told}So the answer is {states[-1]}.") == 1
    assert posed.prefix(told.replace(f"= {states[1]}", "= x")) == 1 / 3
    latex = problems("chain(operations=1)", 50)
    for posed in latex:
        step = posed.steps[0].replace("*", r"\times").replace("/", r"\div")
        assert posed.prefix(rf"\[{step}\]") == 1


def test_steps_too_many_count_as_in_procbench() -> None:
    posed = problems("procedures(steps=4)", 1)[0]
    more = "\n".join([*posed.steps, "Step 5: and on", "Step 6: and on"])
    assert posed.prefix(more) == 4 / 6


def test_a_true_calculation_beside_the_point_is_no_wrong_step() -> None:
    posed = problems("arithmetic", 1)[0]
    first, *others = posed.steps
    assert posed.prefix("\n".join(["So 2 + 2 = 4, and", first, *others])) == 1
    assert posed.prefix("\n".join([first, "2 + 2 = 5", *others])) == 1 / 4


def test_proofs_may_say_what_is_true_and_nothing_else() -> None:
    for posed in problems("proofs(depth=4)", 60):
        if posed.answer == "unknown":
            continue
        name = re.search(r"unknown: (\w+) is", posed.problem.text)[1]  # type: ignore[index]
        never = re.search(r"is (\w+) and \w+, they are (?:not )?\w+\. True", posed.problem.text)
        given = re.search(rf"{name} is (\w+)\.", posed.problem.text)[1]  # type: ignore[index]
        assert posed.prefix("\n".join([f"{name} is {given}.", *posed.steps])) == 1
        last = posed.steps[-1]
        wrong = last.replace("is not ", "is ") if "not" in last else last.replace("is ", "is not ")
        assert posed.prefix("\n".join([*posed.steps[:-1], wrong])) == 3 / 4, never


def test_moves_are_checked_up_to_the_first_that_is_impossible() -> None:
    for task in ("hanoi", "blocks", "river(pairs=3)", "jumping"):
        for posed in problems(task, 20):
            path = posed.answer.split(", ")
            assert posed.prefix(f"The answer is {', '.join(path[:1])}") == 1 / len(path)
            broken = [
                *path[:-1],
                {"hanoi": "AA", "blocks": "TT", "jumping": "99"}.get(task, "C" * 9),
            ]
            assert posed.prefix(f"The answer is {', '.join(broken)}") == (len(path) - 1) / len(path)
            assert not posed.check(", ".join(path[:-1]))


# --- answers, checked by other means ---


def test_calculations_are_right() -> None:
    for posed in problems("arithmetic(digits=3)", 100) + problems("chain(operations=9)", 100):
        text = re.fullmatch(r"What is (.*)\?", posed.problem.text)[1]  # type: ignore[index]
        assert eval(text) == int(posed.answer)
        found = calculate(text)
        assert found is not None
        assert found[0] == int(posed.answer)
    for posed in problems("equations", 100) + problems("equations(digits=3)", 100):
        left, right = posed.problem.text.removeprefix("Solve for x: ").split("=")
        sides = [
            eval(re.sub(r"(\d+)x", r"\1 * x", s), {"x": int(posed.answer)}) for s in (left, right)
        ]
        assert sides[0] == sides[1], posed
    for posed in problems("countdown(numbers=5)", 100):
        *given, target = map(int, re.findall(r"\d+", posed.problem.text.partition(". Give")[0]))
        assert eval(posed.answer) == target
        assert sorted(map(int, re.findall(r"\d+", posed.answer))) == sorted(given)


def test_countdown_takes_any_solution_and_no_cheating() -> None:
    posed = next(p for p in problems("countdown(numbers=2)", 99) if "+" in p.answer)
    a, b = re.findall(r"\d+", posed.answer)
    for right in (f"{b}+{a}", f"({b}) + ({a})", f"{a} + {b} = {int(a) + int(b)}"):
        assert answered(posed, f"The answer is {right}.") == 1, right
    for wrong in (
        f"{int(a) + int(b)}",
        f"{a} + {b} + {a} - {a}",
        f"{a} + {b} * 1",
        f"{a} - -{b} + 0",
    ):
        assert answered(posed, f"The answer is {wrong}.") == 0, wrong


def test_deductions_follow_from_their_rules() -> None:
    for posed in problems("deduction(hops=4)", 200):
        text = posed.problem.text
        is_a = dict(re.findall(r"Every (\w+) is an? (\w+)\.", text))
        has = {k: (not n, t) for k, n, t in re.findall(r"Every (\w+) is (not )?(\w+)\.", text)}
        name, kind = re.search(r"(\w+) is a (\w+)\. True", text).groups()  # type: ignore[union-attr]
        negated, trait = re.search(rf": {name} is (not )?(\w+)\.", text).groups()  # type: ignore[union-attr]
        while has.get(kind, (None, None))[1] != trait:
            kind = is_a[kind]
        assert (has[kind][0] != bool(negated)) == (posed.answer == "true"), posed


def test_every_answer_is_asked_for_equally_often() -> None:
    true = sum(posed.answer == "true" for posed in problems("deduction", 400))
    assert 150 < true < 250  # five standard deviations
    answers = [posed.answer for posed in problems("proofs", 600)]
    assert all(142 < answers.count(answer) < 258 for answer in ("true", "false", "unknown"))


def test_proofs_give_what_follows() -> None:
    for posed in problems("proofs(depth=5)", 200):
        told, _, claim = posed.problem.text.rpartition(" True, false or unknown: ")
        name, negated, trait = re.fullmatch(r"(\w+) is (not )?(\w+)\.", claim).groups()  # type: ignore[union-attr]
        known = dict.fromkeys(re.findall(rf"{name} is (\w+)\.", told), True)
        rules = re.findall(r"If someone is ([\w ]+), they are (not )?(\w+)\.", told)
        for _ in rules:
            for needs, no, head in rules:
                if all(known.get(n) for n in needs.split(" and ")):
                    assert known.setdefault(head, not no) == (not no)  # nothing contradicts itself
        wanted = "unknown" if trait not in known else str(known[trait] != bool(negated)).lower()
        assert posed.answer == wanted
        if wanted != "unknown":
            assert len(posed.steps) == 5


def orders_of(text: str) -> Iterator[tuple[str, ...]]:
    names = sorted(re.match(r"[\w, ]+ stand", text)[0].removesuffix(" stand").split(", "))  # type: ignore[index]
    clues = re.findall(
        r"(\w+) is (somewhere left of|directly left of|not next to|at one end|not at an end)"
        r"(?: (?!of)(\w+))?",
        text,
    )
    assert len(clues) >= text.count(" is ")
    for order in itertools.permutations(names):
        at = order.index
        fits = {
            "somewhere left of": lambda a, b: at(a) < at(b),  # noqa: B023
            "directly left of": lambda a, b: at(a) + 1 == at(b),  # noqa: B023
            "not next to": lambda a, b: abs(at(a) - at(b)) > 1,  # noqa: B023
            "at one end": lambda a, _: at(a) in (0, len(names) - 1),  # noqa: B023
            "not at an end": lambda a, _: at(a) not in (0, len(names) - 1),  # noqa: B023
        }
        if all(fits[what](a, b) for a, what, b in clues):
            yield order


def test_one_order_fits() -> None:
    for posed in problems("ordering(people=5)", 40):
        assert list(orders_of(posed.problem.text)) == [tuple(posed.answer.split(", "))]


def test_one_person_owns_the_fish() -> None:
    for posed in problems("zebra", 40):
        text = posed.problem.text
        names, pets, drinks = (
            re.search(pattern, text)[1].split(", ")  # type: ignore[index]
            for pattern in (r"one of ([\w, ]+), each", r"pet \(([^)]+)\)", r"drink \(([^)]+)\)")
        )
        told = re.findall(
            r"([\w ]+?) (lives in house|is|lives directly left of|lives somewhere left of) "
            r"([\w ]+)\.",
            text.partition("). ")[2],
        )
        owners = set()
        rows = [list(itertools.permutations(kind)) for kind in (names, pets, drinks)]
        for row in itertools.product(*rows):
            place = {thing: i for kind in row for i, thing in enumerate(kind)}

            def at(who: str, place: dict[str, int] = place) -> int:
                return place[re.sub(r"(?i).*the (owner of the|drinker of) ", "", who).strip()]

            def fits(clue: tuple[str, str, str]) -> bool:
                one, what, two = clue
                if what == "lives in house":
                    return at(one) == int(two) - 1
                gap = at(two) - at(one)
                return gap == 0 if what == "is" else gap == 1 if "directly" in what else gap > 0

            if all(map(fits, told)):
                asked = re.search(r"owns the (\w+)", text)[1]  # type: ignore[index]
                owners.add(row[0][place[asked]])
        assert owners == {posed.answer}


def test_one_set_of_knights_can_have_said_so() -> None:
    for posed in problems("knights(people=4)", 60):
        text = posed.problem.text
        names = re.search(r"Each of ([\w, ]+) is a", text)[1].split(", ")  # type: ignore[index]
        said = re.findall(r'(\w+) says: "([^"]+)\."', text)
        assert [name for name, _ in said] == names
        solutions = []
        for kinds in itertools.product((True, False), repeat=len(names)):
            knight = dict(zip(names, kinds, strict=True))
            if all(knight[who] == is_true(what, who, knight) for who, what in said):
                solutions.append(sorted(name for name in names if knight[name]))
        assert solutions == [posed.answer.split(", ")]


def is_true(said: str, who: str, knight: dict[str, bool]) -> bool:
    named = [knight[w] for w in re.findall(r"[A-Z]\w+", said) if w in knight]
    if said.endswith("of the same kind"):
        return named[0] == knight[who]
    if said.endswith("or I am a knave"):
        return not (named[0] and knight[who])
    if said.endswith("are both knaves"):
        return not any(named)
    if said.startswith("At least one"):
        return any(named)
    if said.startswith("If "):
        return not named[0] or named[1]
    return named[0] == said.endswith("is a knight")


def test_shortest_solutions_have_the_known_lengths() -> None:
    for n in range(2, 7):
        assert len(shortest(Puzzle((0,) * n, (2,) * n, hanoi.moves, "")) or ()) == 2**n - 1
    for n in range(1, 5):
        start, goal = f"{'>' * n}_{'<' * n}", f"{'<' * n}_{'>' * n}"
        assert len(shortest(Puzzle(start, goal, jumping.moves, "")) or ()) == (n + 1) ** 2 - 1
    assert shortest(Puzzle(frozenset({"PQR"}), frozenset({"RQP"}), blocks.moves, "")) == [
        "RT",
        "QR",
        "PQ",
    ]
    # Positions of n different blocks in towers: sets of lists.
    towers = distances(frozenset({"PQRS"}), frozenset({"PQRS"}), blocks.moves)
    assert len(towers) == 73
    # Three missionaries and three cannibals: eleven crossings (Amarel 1968).
    begin = re.compile(r"left bank: \w+ 3, \w+ 3;.* boat is on the left")
    made = problems("river(pairs=3, boat=2)", 200)
    known = [p for p in made if begin.search(p.problem.text)]
    assert {len(p.answer.split(",")) for p in known} == {11}


def test_a_puzzle_without_solution_has_none() -> None:
    assert shortest(Puzzle("<_>", ">_<", jumping.moves, "")) is None


def test_the_boat_is_safe() -> None:
    assert not any(river._safe((m, c, True), 3) for m, c in [(1, 2), (2, 3), (2, 1), (4, 1)])
    assert all(river._safe((m, c, True), 3) for m, c in [(0, 3), (3, 0), (2, 2), (3, 1)])


def test_observations_leave_one_mineral() -> None:
    for posed in problems("diagnosis(candidates=6)", 60):
        text = posed.problem.text
        names = re.search(r"one of ([\w, ]+)\.", text)[1].split(", ")  # type: ignore[index]
        left = set(names)
        for test, colour in re.findall(r"Test (\d+) turned (\w+)\.", text):
            told = re.search(rf"Test {test} turns [^.]*?{colour} for ([\w ]+)", text)[1]  # type: ignore[index]
            assert not left <= set(told.split(" and "))  # none is idle
            left &= set(told.split(" and "))
        assert left == {posed.answer}


def test_the_least_number_of_tests() -> None:
    halves = tuple(tuple(who >> bit & 1 for who in range(8)) for bit in range(3))
    assert worst_case(halves, 8) == 3
    one_each = tuple(tuple(int(who == i) for who in range(6)) for i in range(6))
    assert worst_case(one_each, 6) == 5
    assert worst_case((tuple(range(6)), *one_each), 6) == 1


def test_what_is_known_by_heart_is_wrong() -> None:
    edited, original = problems("habits", 100), problems("habits(version='original')", 100)
    for new, old in zip(edited, original, strict=True):
        assert new.habit == old.answer
        assert new.by_habit(f"{old.answer}.")
        assert not new.check(old.answer)
        assert old.habit is None
        if snail := re.match(r".* (\d+) m\. .* climbs (\d+) m.*?(\d+)? m?\. On", old.problem.text):
            deep, climbs, slips = map(int, snail.groups())
            for posed, back in ((old, slips), (new, 0)):
                height, day = 0, 1
                while height + climbs < deep:
                    height, day = height + climbs - back, day + 1
                assert posed.answer == str(day)
        if bat := re.match(r".*cost (\d+) cents in total. .* costs (\d+) cents", old.problem.text):
            total, part = map(int, bat.groups())
            assert (total - part, total - part) == (2 * int(old.answer), int(new.answer))


def test_instructions_are_scored_by_the_share_that_is_followed() -> None:
    for posed in problems("instructions(rules=4)", 50):
        assert posed.score(posed.answer) == 1
        rules = posed.problem.text.splitlines()[1:]
        broken = posed.answer.replace(" ", ", ", 1)
        assert posed.score(broken) == (3 / 4 if "- Use no commas." in rules else 1)
        short = "4711"
        least = sum(r.startswith(("- Use the", "- Use at least", "- End", "- Put")) for r in rules)
        assert posed.score(short) == 1 - least / 4


def test_needles_lie_in_the_text_and_others_too() -> None:
    for posed in problems("needles(words=500, needles=3, others=4)", 20):
        context = posed.problem.context
        assert 500 <= len(context.split()) < 512
        assert context.count("The number of") == 7
        for city, number in re.findall(r"of (\w+) is (\d+)", "\n".join(posed.steps)):
            assert context.count(f"The number of {city} is {number}.") == 1


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean arithmetic"):
        problems("arithmetics", 1)
    with pytest.raises(InputError, match="disks is out of range"):
        problems("hanoi(disks=99)", 1)


# --- solved problems beside a problem ---


def test_shots_are_solved_problems_of_the_task_and_none_of_those_asked(tmp_path: Path) -> None:
    asked = problems("shots(task=words, n=4)", 20, seed=3)
    bank = asked[0].problem.examples
    assert len(bank) == 4
    assert all(posed.problem.examples == bank for posed in asked)
    assert not {one.text for one, _ in bank} & {posed.problem.text for posed in asked}
    assert bank != problems("shots(task=words, n=4)", 1, seed=4)[0].problem.examples
    file = tmp_path / "mine.jsonl"
    lines = [json.dumps({"question": f"{i} + 1?", "answer": str(i + 1)}) for i in range(10)]
    file.write_text("\n".join(lines))
    named = f"shots(task=file(path={str(file)!r}), n=4)"
    six = problems(named, 6)
    shown = {answer for _, answer in six[0].problem.examples}
    assert len(shown) == 4
    assert shown | {posed.answer for posed in six} == {str(i + 1) for i in range(10)}
    with pytest.raises(InputError, match="has not so many"):
        problems(named, 7)
