"""A model that says what a test wants: `anabranch.bench.scripted`, and short ways to ask it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from anabranch.bench.scripted import ChatTokenizer, Rule, ScriptedDecoder, scripted_engine
from anabranch.lm import LM
from anabranch.program.branch import Branch
from anabranch.program.engine import Engine
from anabranch.program.run import Run

__all__ = ["ChatTokenizer", "Rule", "ScriptedDecoder", "ask", "replies", "scripted", "scripted_lm"]


def replies(table: Mapping[str, float]) -> Rule:
    """Whole replies with their probabilities, whatever the prompt. Off the script, the end."""

    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        going = {text[len(reply) :]: p for text, p in table.items() if text.startswith(reply)}
        return going or {"": 1.0}

    return rule


def ask(engine: Engine, text: str, run: Run) -> Branch:
    """A root that waits for the reply to a question."""
    return engine.open([{"role": "user", "content": text}], seed=run.seed, run=run)


def scripted(rule: Rule | Mapping[str, float], *, pages: int = 512) -> Engine:
    """An engine whose model follows a rule, or a table of whole replies."""
    return scripted_engine(replies(rule) if isinstance(rule, Mapping) else rule, pages=pages)


def scripted_lm(rule: Rule | Mapping[str, float]) -> LM:
    """A loaded "model" around it."""
    return LM(scripted(rule), "scripted", f"{zlib.crc32(repr(rule).encode()):08x}")
