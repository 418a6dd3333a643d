"""optillm on a server: the functions behind its approaches, with the client that it makes."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

from openai import OpenAI
from optillm.bon import best_of_n_sampling
from optillm.mcts import chat_with_mcts
from optillm.plugins.majority_voting_plugin import run as majority_voting

from peers.protocol import serve

ANSWERS = 6
"""Answers that one of its simulations samples: three when it expands, three when it simulates."""


class OptiLLM:
    """Its approaches, one problem at a time."""

    def __init__(self, model: str, threads: int, server: str, name: str) -> None:
        self._model = name
        self._client = OpenAI(base_url=f"{server}/v1", api_key="none")

    def about(self) -> dict[str, Any]:
        return {
            "version": f"optillm {version('optillm')}",
            "settings": "its functions called directly, without its proxy; the request's own n; "
            "its prompts for ratings and for tree search",
        }

    def think(
        self,
        method: str,
        system: str,
        question: str,
        n: int,
        temperature: float,
        max_tokens: int,
        **_: Any,
    ) -> dict[str, Any]:
        """Solve one problem; the text that it chose.

        The temperature is that of the vote; the other two have theirs, 1, built in.
        """
        config = {"k": n, "temperature": temperature, "max_tokens": max_tokens}
        where = system, question, self._client, self._model
        began = time.perf_counter()
        if method == "majority_voting":
            text, _tokens = majority_voting(*where, config)
        elif method == "bon":
            text, _tokens = best_of_n_sampling(*where, n, config)
        elif method == "mcts":
            text, _tokens = chat_with_mcts(
                *where, max(1, round(n / ANSWERS)), request_config=config
            )
        else:
            raise ValueError(f"no method {method}")
        return {"seconds": time.perf_counter() - began, "text": text}


if __name__ == "__main__":
    serve(OptiLLM)
