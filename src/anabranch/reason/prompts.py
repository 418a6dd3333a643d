"""What is put to the model."""

from __future__ import annotations

from collections.abc import Sequence

from anabranch.errors import InputError
from anabranch.program.answers import letters
from anabranch.program.types import Problem

STEPS = "Work it out step by step, one short line per step."
"""Small models lose long instructions, and skip the steps when the ending is asked for first."""

ENDING = 'At the end write "The answer is" and the answer.'
ENDING_CHOICE = 'At the end write "The answer is" and the letter of the right option.'
"""Endings that `answers.extract` reads."""


def messages(problem: Problem, shown: Sequence[tuple[str, str]] = ()) -> list[dict[str, str]]:
    """The conversation that asks for a problem's solution.

    The problem's own `system` text replaces our instruction.

    Args:
        shown: turns that come before, each with its reply, as examples.

    Raises:
        InputError: the problem has no text, or more choices than letters.
    """
    if not problem.text.strip():
        raise InputError("the problem is empty", fix="give it some text")
    if len(problem.choices) > 26:
        raise InputError("too many choices", got=len(problem.choices), allowed="up to 26")
    return conversation(problem, instruction(problem), shown)


def instruction(problem: Problem) -> str:
    """What asks for a solution; the question alone where the problem has its own `system` text."""
    question = stated_question(problem)
    return question if problem.system is not None else f"{question}\n\n{STEPS} {ending(problem)}"


def conversation(
    problem: Problem, text: str, shown: Sequence[tuple[str, str]] = ()
) -> list[dict[str, str]]:
    """Messages that wait for the reply to `text`, under the problem's own `system` text.

    Args:
        shown: as for `messages`.
    """
    turns = [] if problem.system is None else [{"role": "system", "content": problem.system}]
    for asked, replied in shown:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": replied}]
    return [*turns, {"role": "user", "content": text}]


def stated_question(problem: Problem) -> str:
    """A problem's text with its choices, one a line."""
    return "\n".join(listed(problem, problem.text))


def listed(problem: Problem, question: str) -> list[str]:
    """The problem's context, a question, and the problem's choices, each a line."""
    options = zip(letters(problem), problem.choices, strict=False)
    above = [problem.context, ""] if problem.context else []
    return [*above, question, *(f"{letter}) {text}" for letter, text in options)]


def ending(problem: Problem) -> str:
    """How a solution is asked to end."""
    return ENDING_CHOICE if letters(problem) else ENDING
