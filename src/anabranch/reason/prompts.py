"""What is put to the model."""

from __future__ import annotations

from anabranch.errors import InputError
from anabranch.program.answers import letters
from anabranch.program.types import Problem

STEPS = "Work it out step by step, one short line per step."
"""Small models lose long instructions, and skip the steps when the ending is asked for first."""

ENDING = 'At the end write "The answer is" and the answer.'
ENDING_CHOICE = 'At the end write "The answer is" and the letter of the right option.'
"""Endings that `answers.extract` reads."""


def messages(problem: Problem) -> list[dict[str, str]]:
    """The conversation that asks for a problem's solution.

    The problem's own `system` text replaces our instruction.

    Raises:
        InputError: the problem has no text, or more choices than letters.
    """
    if not problem.text.strip():
        raise InputError("the problem is empty", fix="give it some text")
    if len(problem.choices) > 26:
        raise InputError("too many choices", got=len(problem.choices), allowed="up to 26")
    question = stated_question(problem)
    if problem.system is not None:
        return [
            {"role": "system", "content": problem.system},
            {"role": "user", "content": question},
        ]
    return [{"role": "user", "content": f"{question}\n\n{STEPS} {ending(problem)}"}]


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
