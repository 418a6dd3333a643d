"""`anabranch chat`: a conversation on one branch, so that every turn reuses all before it."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anabranch.cli.app import app
from anabranch.cli.draw import clean
from anabranch.cli.options import (
    DEFAULT_MODEL,
    KV,
    Model,
    Offline,
    Seed,
    System,
    Threads,
    load_model,
)
from anabranch.errors import AnabranchError, InputError, check_range
from anabranch.program.branch import Branch
from anabranch.program.derived import say
from anabranch.program.types import Mark

if TYPE_CHECKING:
    from anabranch.lm import LM

HELP = """/undo   forget the last turn
/reset  start anew
/quit   leave (so does Ctrl-D; Ctrl-C stops a reply)"""


class Conversation:
    """Turns on one branch of the token tree.

    Args:
        limit: most tokens of a reply.
        sampling: as in `Branch.extend`.
    """

    def __init__(
        self, lm: LM, *, system: str | None, seed: int, limit: int, sampling: dict[str, Any]
    ) -> None:
        self.lm, self.system, self.seed = lm, system, seed
        self.limit, self.sampling = limit, sampling
        self._branch: Branch | None = None
        self._turns: list[Mark | None] = []

    async def reply(self, text: str) -> AsyncIterator[str]:
        """Say something, and stream the reply piece by piece.

        Raises:
            ContextError: it does not fit any more; the conversation stays as it was.
        """
        if self._branch is None:
            system = [] if self.system is None else [{"role": "system", "content": self.system}]
            asked = [*system, {"role": "user", "content": text}]
            self._branch = self.lm.engine.open(asked, seed=self.seed)
            self._turns.append(None)
        else:
            before = self._branch.mark
            self._turns.append(before)
            try:
                await say(self._branch, text)
            except AnabranchError:
                self.undo()
                raise
        async for piece in self._branch.stream(self.limit, **self.sampling):
            yield piece

    @property
    def cut_short(self) -> bool:
        """Whether the last reply met its limit."""
        last = self._branch.last if self._branch else None
        return last is not None and last.stop == "limit"

    def undo(self) -> bool:
        """Forget the last turn, by going on from before it. False if there was none."""
        if not self._turns or self._branch is None:
            return False
        mark, left = self._turns.pop(), self._branch
        self._branch = None if mark is None else left.fork(at=mark)
        left.drop("undone")
        return True

    def reset(self) -> None:
        """Start anew."""
        if self._branch is not None:
            self._branch.drop("reset")
        self._branch, self._turns = None, []


@app.command()
def chat(
    model: Model = DEFAULT_MODEL,
    system: System = None,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Share of the likeliest tokens to draw from.")] = 0.9,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of one reply.")] = 1024,
    seed: Seed = 0,
    threads: Threads = None,
    kv: KV = "f32",
    offline: Offline = False,
) -> None:
    """Talk with a model. Type /help for what else it understands."""
    check_range("temperature", temperature, 0, 10)
    check_range("top_p", top_p, 0, 1, low_open=True)
    check_range("max_tokens", max_tokens, 1, 1 << 20)
    check_range("seed", seed, 0, 2**64 - 1)
    sampling = {"temperature": temperature, "top_p": top_p}
    with load_model(model, threads=threads, kv=kv, offline=offline) as lm:
        talk = Conversation(lm, system=system, seed=seed, limit=max_tokens, sampling=sampling)
        while (line := _ask()) is not None:
            if line == "/quit":
                break
            if line.startswith("/"):
                _obey(talk, line)
            elif line:
                _answer(talk, line)


def _ask() -> str | None:
    """The next line, stripped; None at the end of the input."""
    prompt = "> " if sys.stdin.isatty() else ""
    try:
        line = input(prompt)
        line.encode()
    except EOFError:
        return None
    except KeyboardInterrupt:
        print("\n/quit or Ctrl-D leaves")
        return ""
    except UnicodeError:
        raise InputError("the input is not valid UTF-8", fix="convert it first") from None
    return line.strip()


def _obey(talk: Conversation, command: str) -> None:
    if command == "/undo":
        print("forgotten" if talk.undo() else "nothing to undo")
    elif command == "/reset":
        talk.reset()
        print("a new conversation")
    else:
        print(HELP)


def _answer(talk: Conversation, text: str) -> None:
    """Stream a reply; Ctrl-C stops it, and what does not fit is said."""

    async def show() -> None:
        async for piece in talk.reply(text):
            sys.stdout.write(clean(piece))
            sys.stdout.flush()

    try:
        talk.lm.run(show())
    except KeyboardInterrupt:
        print(" [stopped]", end="")
    except AnabranchError as error:
        print(f"error: {error}; /undo or /reset makes room", file=sys.stderr)
        return
    print(" [cut short]" if talk.cut_short else "", end="\n\n")
