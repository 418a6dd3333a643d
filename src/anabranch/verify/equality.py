"""Whether two answers mean the same: as numbers, or as mathematics. For checks of problems."""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from fractions import Fraction
from typing import Any

from anabranch.errors import InputError, check_range
from anabranch.program.answers import normalise_number

MAX_FORMULA = 240
"""Longest formula that is parsed, in characters."""

MAX_SECONDS = 5.0
"""Longest that one comparison may take; formulas that take longer count as different."""

START_SECONDS = 120.0
"""Longest that loading the computer algebra system may take."""

# What makes short texts expensive, besides powers of powers: exponents of three digits, factorials,
# sums, and nesting.
_LARGE_POWER = re.compile(r"\^[\s{(+-]{0,9}(?:\d[^\w^{}()]*){3}")
_EXPENSIVE = re.compile(r"!|\\(?:sum|prod|int|lim|binom)|\d{61}|factorial|gamma|\be\d{3}", re.I)
_MAX_DEPTH = 24


def numeric(answer: str, expected: str, tolerance: float = 0.0) -> bool:
    """Whether two texts are the same number, exactly: "1/2", "0.50" and "$0.5" are.

    Args:
        tolerance: greatest difference that still counts as none, as a share of `expected`.
    """
    check_range("tolerance", tolerance, 0, 1)
    first, second = map(normalise_number, (answer, expected))
    if first is None or second is None:
        return False
    a, b = Fraction(first), Fraction(second)
    return abs(a - b) <= Fraction(tolerance) * abs(b)


def symbolic(answer: str, expected: str) -> bool:
    """Whether two formulas (LaTeX or plain) are equal as mathematics: `x+1` and `1+x` are.

    Numbers that `numeric` finds equal are equal without parsing anything. What takes
    longer than `MAX_SECONDS`, or surely would, is equal to nothing but its own text. The work is
    done in a process of its own, which is started when first needed.

    Raises:
        InputError: math-verify is not installed.
    """
    if answer.strip() == expected.strip() or numeric(answer, expected):
        return True
    if not (_cheap(answer) and _cheap(expected)):
        return False
    if importlib.util.find_spec("math_verify") is None:
        raise InputError(
            "symbolic comparison needs a package that is not here", got="math-verify",
            fix="pip install math-verify",
        )  # fmt: skip
    return _WORKER.ask(answer, expected) == b"True"


class Worker:
    """A process that answers lines, and is killed when one takes too long.

    Some short formulas keep a computer algebra system busy for hours, and nothing but the end of
    the process stops it.

    Args:
        module: its `serve` reads lines and prints one for each, "ready" for an empty one.
    """

    def __init__(self, module: str) -> None:
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        atexit.register(self.stop)

    def ask(self, *values: str) -> bytes:
        """What it answers, b"" if it took too long or failed."""
        with self._lock:
            try:
                if self._process is None:
                    self._process = self._start()
                    self._tell(self._process, b"", START_SECONDS)
                said = self._tell(self._process, json.dumps(values).encode(), MAX_SECONDS)
            except OSError:
                said = b""
            if not said:
                self.stop()
            return said

    def stop(self) -> None:
        """End the process; the next comparison starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", f"import {self._module} as work; work.serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # Ctrl-C is for us
        )

    def _tell(self, process: subprocess.Popen[bytes], line: bytes, seconds: float) -> bytes:
        """What it answers to a line, b"" if it has to be killed."""
        assert process.stdin is not None
        assert process.stdout is not None
        watch = threading.Timer(seconds, process.kill)
        watch.start()
        try:
            process.stdin.write(line + b"\n")
            process.stdin.flush()
            return process.stdout.readline().strip()
        finally:
            watch.cancel()


_WORKER = Worker(__name__)


def serve() -> None:
    """The worker's own loop: pairs of formulas in, whether they are equal out."""
    math_verify: Any = importlib.import_module("math_verify")
    for line in sys.stdin:
        if not line.strip():
            print("ready", flush=True)
            continue
        answer, expected = json.loads(line)
        try:
            wanted, given = (
                math_verify.parse(f"${text}$", parsing_timeout=None) for text in (expected, answer)
            )
            same = wanted and given and math_verify.verify(wanted, given, timeout_seconds=None)
        except Exception:  # a parser on a model's text
            same = False
        print(bool(same), flush=True)


def _cheap(text: str) -> bool:
    depth = most = 0
    for character in text[: MAX_FORMULA + 1]:
        depth += (character in "([{") - (character in ")]}")
        most = max(most, depth)
    if len(text) > MAX_FORMULA or most > _MAX_DEPTH:
        return False
    text = text.replace("**", "^")
    return not (_towers(text) or _LARGE_POWER.search(text) or _EXPENSIVE.search(text))


def _towers(text: str) -> bool:
    """Whether an exponent has an exponent, in brackets or not: 9^{9^9}, 9^9^9, 9^(9)^9."""
    inside = [False]  # per open bracket: whether it stands in an exponent
    begins = simple = False  # an exponent is to come; one has just been read
    for character in text:
        if character.isspace() or (begins and character in "+-"):
            continue
        if character == "^":
            if inside[-1] or simple:
                return True
            begins, simple = True, False
        elif character in "([{":
            inside.append(inside[-1] or begins)
            begins = simple = False
        elif character in ")]}":
            simple = inside.pop() if len(inside) > 1 else False
        else:
            simple = begins or (simple and character.isdigit())
            begins = False
    return False
