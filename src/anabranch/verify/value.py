"""A value head: one linear map of the model's hidden state, fitted to what became of thoughts."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from anabranch.errors import FileFormatError, InputError
from anabranch.program.branch import Branch
from anabranch.program.registry import Text
from anabranch.program.tasks import together
from anabranch.program.types import Mark, Problem, Thought
from anabranch.verify.asking import step_ends, unasked
from anabranch.verify.records import Record, RootOf, by_problem, replay
from anabranch.verify.registry import UNKNOWN, Judge, judge
from anabranch.verify.report import auc

F64 = npt.NDArray[np.float64]

FORMAT = 1
"""Version of the file. Readers refuse others."""

MAX_BYTES = 16 << 20
"""Most bytes that a file of a head may hold, unpacked."""

FOLDS = 5
# What zipfile and numpy raise on files that are cut, changed or made to hurt.
_BROKEN = (ValueError, EOFError, KeyError, RuntimeError, OverflowError, MemoryError,
           zipfile.BadZipFile, zlib.error)  # fmt: skip

RIDGES = tuple(10.0**k for k in range(-4, 5))
"""Strengths tried, as multiples of the mean variance along the states' own directions."""


@dataclass(frozen=True)
class Head:
    """value = clip(state · weights + bias, 0, 1).

    Attributes:
        weights: `[hidden]`.
        fingerprint: of the model whose states it reads.
        auc: on states of problems that it was not fitted to; None if that could not be told.
    """

    weights: F64
    bias: float
    fingerprint: str = ""
    auc: float | None = None

    def __call__(self, states: Any) -> F64:
        """Values of states `[..., hidden]`."""
        values = np.asarray(states, np.float64) @ self.weights + self.bias
        return np.clip(values, 0.0, 1.0)

    def save(self, path: Path | str) -> None:
        """Write it as .npz; what stood there stays until it is whole. Raises InputError."""
        partial = f"{path}.partial"
        try:
            with open(partial, "wb") as file:
                np.savez(
                    file,
                    format=np.int64(FORMAT),
                    weights=self.weights,
                    bias=np.float64(self.bias),
                    fingerprint=np.array(self.fingerprint),
                )
            os.replace(partial, path)
        except OSError as error:
            raise InputError(
                f"the head cannot be written: {error.strerror}", got=str(path)
            ) from None
        finally:
            with suppress(OSError):
                os.unlink(partial)


def load(path: Path | str) -> Head:
    """A head from its file.

    Raises:
        InputError: there is no such file.
        FileFormatError: it is not a head, or of another version.
    """
    fix = "make it again with `anabranch fit-judge`"
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
                raise FileFormatError(path, f"larger than {MAX_BYTES} bytes", fix=fix)
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except OSError as error:
        raise InputError(f"the head cannot be read: {error.strerror}", got=str(path)) from None
    except _BROKEN:
        raise FileFormatError(path, "not a value head (.npz)", fix=fix) from None
    kinds = {"format": ("i", 0), "weights": ("f", 1), "bias": ("f", 0), "fingerprint": ("U", 0)}
    for name, (kind, ndim) in kinds.items():
        array = found.get(name)
        if array is None or array.dtype.kind != kind or array.ndim != ndim:
            raise FileFormatError(path, f"not a value head: no proper {name!r}", fix=fix)
    if int(found["format"]) != FORMAT:
        raise FileFormatError(path, f"version {int(found['format'])}, not {FORMAT}", fix=fix)
    weights, bias = found["weights"].astype(np.float64), float(found["bias"])
    if not (np.isfinite(weights).all() and np.isfinite(bias)):
        raise FileFormatError(path, "weights that are not finite", fix=fix)
    return Head(weights, bias, str(found["fingerprint"]))


def fit(states: Any, outcomes: Any, groups: Any = None, *, fingerprint: str = "") -> Head:
    """Ridge regression of outcomes on hidden states.

    How strongly weights are held down is chosen by cross-validation over groups.

    Args:
        states: `[n, hidden]`.
        outcomes: `[n]` in [0, 1]: 1 where the thought came to a right answer.
        groups: `[n]` what belongs together, such as states of one problem; default: each alone.

    Raises:
        InputError: shapes that do not fit, values that are not finite, or outcomes all the same.
    """
    x, y = np.asarray(states, np.float64), np.asarray(outcomes, np.float64)
    groups = np.arange(len(y)) if groups is None else np.asarray(groups)
    if x.ndim != 2 or y.shape != x.shape[:1] or groups.shape != y.shape:
        raise InputError("states and outcomes do not fit", got=(x.shape, y.shape, groups.shape))
    if not (np.isfinite(x).all() and np.isfinite(y).all() and ((y >= 0) & (y <= 1)).all()):
        raise InputError("states must be finite, and outcomes between 0 and 1")
    if len(y) < 2 or y.min() == y.max():
        raise InputError("the outcomes are all the same", fix="give right and wrong solutions")
    _, fold = np.unique(groups, return_inverse=True)
    fold = fold % FOLDS
    guesses = np.full((len(RIDGES), len(y)), np.nan)
    for k in np.unique(fold):
        rest = fold != k
        if rest.any():
            for i, (weights, bias) in enumerate(_solve(x[rest], y[rest])):
                guesses[i, ~rest] = x[~rest] @ weights + bias
    known = ~np.isnan(guesses[0])
    best, area = len(RIDGES) // 2, None
    if known.any():
        best = int(np.argmin(((guesses[:, known] - y[known]) ** 2).mean(axis=1)))
        area = auc(guesses[best, known], y[known] >= 0.5)
    weights, bias = _solve(x, y)[best]
    return Head(weights, bias, fingerprint, area)


def _solve(x: F64, y: F64) -> list[tuple[F64, float]]:
    """Weights and bias for every strength, from one decomposition."""
    middle, mean = x.mean(axis=0), float(y.mean())
    u, s, vt = np.linalg.svd(x - middle, full_matrices=False)
    target, scale = u.T @ (y - mean), float(np.mean(s**2)) or 1.0
    found = []
    for ridge in RIDGES:
        weights = vt.T @ (s / (s**2 + ridge * scale) * target)
        found.append((weights, mean - float(middle @ weights)))
    return found


async def fit_to(
    records: Sequence[Record],
    root_of: RootOf,
    *,
    boundary: str | None = "\n",
    fingerprint: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Head, int]:
    """A head for the model behind `root_of`, from states at the end of every step.

    Every step of a solution has the outcome of the whole: what a prefix is worth is how often such
    prefixes come out right.

    Args:
        boundary: ends a step; None: only the ends of solutions.
        progress: told of problems done, and of all.

    Returns:
        The head, and the number of states it was fitted to.
    """
    states, outcomes, groups = [], [], []
    problems = by_problem(records)
    for g, group in enumerate(problems):
        async with replay([records[i] for i in group], root_of) as thoughts:
            for i, thought in zip(group, thoughts, strict=True):
                branch = thought.branch
                tip = [branch.mark.position]
                ends = tip if boundary is None else step_ends(thought, boundary)
                own = await together(_state(branch, end) for end in ends)
                states += own
                outcomes += [float(records[i].right)] * len(own)
                groups += [g] * len(own)
        progress(g + 1, len(problems))
    return fit(states, outcomes, groups, fingerprint=fingerprint), len(states)


@judge(
    "value",
    paper="Chen et al. 2024, AlphaMath almost zero (value head)",
    summary="A linear head on hidden states, made by `anabranch fit-judge`; costs no tokens.",
)
def value(*, head: Annotated[str, Text()] = "") -> Judge:
    """The head's value of the state at a thought's tip.

    Departures: fitted once, in closed form, to recorded outcomes; outcomes are 0 and 1, not -1 and
    1, and the map is clipped, not squashed.

    Raises:
        InputError: no head is named.
        FileFormatError: the file is not a head.
    """
    if not head:
        raise InputError("value needs a head", fix='name one: value(head="path/to/head.npz")')
    linear = load(head)

    async def rate(problem: Problem, thoughts: Sequence[Thought]) -> list[float]:
        # How keys and values are kept ("+kv-bf16") changes states less than the fit can tell.
        engine = thoughts[0].branch.engine
        if engine.fingerprint.partition("+")[0] != linear.fingerprint.partition("+")[0]:
            raise InputError(
                "the value head was fitted to another model", got=head,
                fix="fit one to this model with `anabranch fit-judge`",
            )  # fmt: skip
        return await together(_value(linear, thought.branch) for thought in thoughts)

    return Judge(rate)


async def _value(head: Head, branch: Branch) -> float:
    if not branch.live:
        unasked(branch, "the thought was dropped")
        return UNKNOWN
    tip = branch.mark.position
    # Heads are fitted to texts, which have no token for their end.
    if branch.tokens[-1] in branch.engine.tokenizer.ends and tip > branch.opening.position:
        tip -= 1
    return float(head(await _state(branch, tip)))


async def _state(branch: Branch, position: int) -> Any:
    """`[hidden]` after a position of a path."""
    there = branch.fork(at=Mark(branch.id, position))
    try:
        return (await there.peek(1, hidden=True)).hidden
    finally:
        there.drop("value")
