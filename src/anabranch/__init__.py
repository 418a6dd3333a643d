"""Anabranch: an LLM inference engine whose unit of work is a branching reasoning program.

    import anabranch

    lm = anabranch.load("smollm2-135m")
    print(lm.solve("What is 2 + 2?", strategy="vote(n=8)").answer)

Importing this package loads no backend and no model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anabranch.lm import LM, connect, load

__version__ = "0.1.0"

__all__ = ["LM", "__version__", "connect", "load"]


def __getattr__(name: str) -> Any:
    # Late, so that `import anabranch` stays free of backends and models.
    if name in ("LM", "connect", "load"):
        from anabranch import lm

        return getattr(lm, name)
    raise AttributeError(f"module 'anabranch' has no attribute {name!r}")
