"""its_hub on a server: its algorithms and its client, with a judge for those that need one.

The judge is the likelihood that the server tells along with every text: the mean probability per
token of all that a path has written, as our judge `likelihood` has it. It costs no request.
"""

from __future__ import annotations

import asyncio
import re
import time
import warnings
from importlib.metadata import version
from math import exp
from typing import Any

from its_hub import BestOfN, OpenAICompatibleLanguageModel, SelfConsistency, StepGeneration
from its_hub.api import AbstractOutcomeRewardModel, AbstractProcessRewardModel
from its_hub.core.algorithms.beam_search import BeamSearch
from its_hub.core.algorithms.particle_gibbs import ParticleFiltering

from peers.protocol import serve

STEP = "\n"
END = "\x03"
"""Ends a path. `StepGeneration` knows an end by a text in the last step and cannot see the model's
own, after which it would ask for one empty step after the other."""

_STATED = re.compile(r"answer is\W{0,4}(-?[\w.,/]*\w)", re.IGNORECASE)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")

# Its client warns that the call that its own step generation uses will be replaced.
warnings.filterwarnings("ignore", category=DeprecationWarning, module="its_hub")


def read(text: str) -> str:
    """The answer that a text gives, for the vote: as stated at its end, else its last number."""
    found = _STATED.findall(text) or _NUMBER.findall(text) or [text]
    return str(found[-1]).replace(",", "").casefold()


class Client(OpenAICompatibleLanguageModel):  # type: ignore[misc]
    """Its client, which also asks for log-probabilities and remembers each path's."""

    def __init__(self, **options: Any) -> None:
        super().__init__(include_raw_choices=True, **options)
        self._paths: dict[str, tuple[float, int]] = {}

    def likelihood(self, text: str) -> float:
        """Mean probability per token of a path, from all that was written."""
        logp, tokens = self._paths.get(text, (0.0, 0))
        return min(1.0, exp(logp / tokens)) if tokens else 0.0

    def _prepare_request_data(self, *given: Any, **named: Any) -> Any:
        request = super()._prepare_request_data(*given, **named)
        return {**request, "logprobs": True, "top_logprobs": 1}

    async def agenerate(self, messages: Any, stop: str | None = None, **named: Any) -> Any:
        replies = await super().agenerate(messages, stop, **named)
        for conversation, reply in zip(messages, replies, strict=True):
            self._note(conversation, reply, stepwise=True)
        return replies

    async def agenerate_single(self, messages: Any, stop: str | None = None, **named: Any) -> Any:
        reply = await super().agenerate_single(messages, stop, **named)
        self._note(messages, reply, stepwise=False)
        return reply

    def _note(self, messages: Any, reply: dict[str, Any], *, stepwise: bool) -> None:
        told = reply.pop("_raw_choice")["logprobs"]
        drawn = told["content"] if told else []
        before = messages[-1].content if messages[-1].role == "assistant" else ""
        # llama-server tells the whole turn, its_hub expects what is new, as vLLM tells it.
        text = (reply["content"] or "").removeprefix(before)
        # What ends a text by itself has no text.
        ended = bool(drawn) and not drawn[-1]["token"]
        if stepwise and (ended or _STATED.search(text)):
            text += END
        reply["content"] = text
        logp, tokens = self._paths.get(before.removesuffix(STEP), (0.0, 0))
        logp += sum(token["logprob"] for token in drawn)
        self._paths[before + text] = logp, tokens + len(drawn)


class Outcome(AbstractOutcomeRewardModel):  # type: ignore[misc]
    """Likelihood of finished texts."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def score(self, messages: Any, **_: Any) -> Any:
        return [self._client.likelihood(conversation[-1].content) for conversation in messages]

    async def ascore(self, messages: Any, orchestrator: Any = None, **_: Any) -> Any:
        return self.score(messages)


class Process(AbstractProcessRewardModel):  # type: ignore[misc]
    """Likelihood of paths."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def score(self, prompt_or_messages: Any, steps: list[str]) -> list[float]:
        return [self._client.likelihood(path) for path in steps]

    async def ascore(self, prompt_or_messages: Any, steps: list[str]) -> list[float]:
        return self.score(prompt_or_messages, steps)


class ItsHub:
    """Its algorithms, one problem at a time."""

    def __init__(self, model: str, threads: int, server: str, name: str) -> None:
        self._model, self._server = name, server

    def about(self) -> dict[str, Any]:
        return {
            "version": f"its_hub {version('its_hub')}",
            "settings": "all samples of a round at once; likelihood as reward; steps are lines",
        }

    def think(
        self,
        method: str,
        system: str,
        question: str,
        n: int,
        fanout: int,
        temperature: float,
        max_tokens: int,
        step_tokens: int,
        rounds: int,
    ) -> dict[str, Any]:
        """Solve one problem; the text that it chose."""
        stepwise = method in ("beam", "particles")

        async def solve() -> str:
            client = Client(
                endpoint=f"{self._server}/v1",
                api_key="none",
                model_name=self._model,
                system_prompt=system,
                temperature=temperature,
                max_completion_tokens=step_tokens if stepwise else max_tokens,
            )
            steps = StepGeneration(
                max_steps=rounds, step_token=STEP, stop_token=END, temperature=temperature
            )
            algorithm = {
                "self_consistency": lambda: SelfConsistency(read),
                "best_of_n": lambda: BestOfN(Outcome(client)),
                "beam": lambda: BeamSearch(steps, Process(client), beam_width=n // fanout),
                "particles": lambda: ParticleFiltering(steps, Process(client)),
            }[method]()
            async with client:
                reply = await algorithm.ainfer(client, question, n)
            return str(reply["content"])

        began = time.perf_counter()
        text = asyncio.run(solve())
        return {"seconds": time.perf_counter() - began, "text": text.replace(END, "")}


if __name__ == "__main__":
    serve(ItsHub)
