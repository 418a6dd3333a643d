"""What is put to the model."""

from __future__ import annotations

from anabranch.errors import InputError
from anabranch.program.types import Problem
from anabranch.reason.answers import letters

INSTRUCTION = "Think step by step. Then end with one line of the form: The answer is X."
"""Asks for steps and for an ending that `answers.extract` reads. Short: small models lose a long
one."""

INSTRUCTION_CHOICE = (
    "Think step by step. Then end with one line of the form: The answer is X. "
    "X is the letter of the right option."
)


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
    options = zip(letters(problem), problem.choices, strict=False)
    question = "\n".join([problem.text, *(f"{letter}) {text}" for letter, text in options)])
    if problem.system is not None:
        return [
            {"role": "system", "content": problem.system},
            {"role": "user", "content": question},
        ]
    instruction = INSTRUCTION_CHOICE if letters(problem) else INSTRUCTION
    return [{"role": "user", "content": f"{question}\n\n{instruction}"}]
