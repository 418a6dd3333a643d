"""Named tensors inside memory-mapped files: what both file formats come down to."""

from __future__ import annotations

import mmap
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anabranch.backends.base import U8
from anabranch.errors import FileFormatError


@dataclass(frozen=True)
class Tensor:
    """A tensor still in its file's own bytes.

    Attributes:
        path: the file it lies in.
        name: its name there.
        shape: slowest axis first; a matrix is `(outputs, inputs)`.
        format: how its bytes are to be read: a key of `quants.FORMATS`, or a name this version
            does not read.
        data: `[bytes]`, a view of the mapped file if `mapped`.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    format: str
    data: U8
    mapped: bool = False

    def rows(self, order: npt.NDArray[np.intp]) -> Tensor:
        """The tensor with its rows in another order. Exact in any format: rows are whole bytes."""
        data = self.data.reshape(self.shape[0], -1)[order].reshape(-1)
        return replace(self, data=data, mapped=False)


def let_go(data: mmap.mmap) -> None:
    """Take a mapped file's pages out of this process's memory, until they are read again.

    They stay in the system's cache. Without this, packed weights and the file count side by side.
    """
    if hasattr(mmap, "MADV_DONTNEED"):
        data.madvise(mmap.MADV_DONTNEED)


def map_file(path: Path) -> mmap.mmap:
    """Map a whole file for reading. Raises FileFormatError."""
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise FileFormatError(path, "the file is empty")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise FileFormatError(path, f"cannot be read: {error.strerror}") from error
