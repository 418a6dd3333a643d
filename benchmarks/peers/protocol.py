"""How a measured engine talks: one process, JSON lines over stdin and stdout.

The first line in is `{"model": FILE, "threads": N, ...}`, and `{"about": {...}}` comes back once
the model is loaded; then `{"task": NAME, ...}` for `{"seconds": S, ...}`, one at a time. A line
`{"error": TEXT}` says why not. Tokens are ids, the same for all; a prompt comes only once. Clocks
run in the worker, around the work only: what passes the pipe costs nobody anything.

A peer is one file with a class that offers these tasks, or some of them:

    first(prompt)                       seconds to the first token drawn after a new prompt
    decode(prompt, branches, steps)     prompt once; the seconds of `steps` forward passes, each of
                                        one token for every branch, and of as many draws
    prune(prompt, steps, parents)       tree search: `parents[r][i]` is the branch whose path branch
                                        i goes on from in round r + 1, itself if it survived
    document(document, questions, branches, steps)
                                        `steps` tokens for each of the branches of each question
    options(prompt, options)            the log-probability of each option after the prompt

All draw at temperature 1 from the whole distribution; an end of text is as good as any token.
The peers of `thinking.py` offer one task, whose prompts are text, since they think in texts:

    think(method, system, question, ...)    seconds to the solution that a method settles on
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, Protocol


class Peer(Protocol):
    """A loaded model. Each public method but `about` is a task and returns its reply."""

    def about(self) -> dict[str, Any]:
        """Version, formats and settings: what a reader needs to judge the comparison."""
        ...


def serve(load: Callable[..., Peer]) -> None:
    """Load what the first line asks for and answer until stdin ends."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not end up between replies
    peer: Peer | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if peer is None:
                peer = load(**request)
                reply: dict[str, Any] = {"about": peer.about()}
            else:
                reply = getattr(peer, request.pop("task"))(**request)
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}".partition("\n")[0]}
        replies.write(json.dumps(reply) + "\n")
