"""Figures for Prometheus, named as vLLM names its own, with `anabranch_` before them.

Every server has a registry of its own. Counts belong to the model's name without a strategy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

if TYPE_CHECKING:
    from anabranch.serve.admission import Admission
    from anabranch.serve.hub import Hub

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 600)
"""Bounds of the histograms."""


class Metrics:
    """Counters and histograms, by model.

    Attributes:
        first: seconds to a request's first text; of a strategy, to its first finished step.
        between: seconds between two texts of one choice, without a strategy.
        whole: seconds of a request that generated.
        finished: choices by why they ended: stop, length; abort: the client left; error; none:
            nothing was written, as with scores.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, about: str, *labels: str) -> Counter:
            names = ("model_name", *labels)
            return Counter(f"anabranch_{name}", about, names, registry=self.registry)

        def histogram(name: str, about: str) -> Histogram:
            return Histogram(
                f"anabranch_{name}", about, ("model_name",), buckets=SECONDS, registry=self.registry
            )

        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts.")
        self.tokens = counter("generation_tokens", "Tokens of replies, all branches counted.")
        self.finished = counter("request_success", "Choices that ended.", "finished_reason")
        self.first = histogram("time_to_first_token_seconds", "Until the first text.")
        self.between = histogram("inter_token_latency_seconds", "Between texts of a choice.")
        self.whole = histogram("e2e_request_latency_seconds", "Of requests that generated.")

    def watch(self, hub: Hub, admission: Admission) -> None:
        """Tell of engines and places too, as they are when asked."""
        self.registry.register(_Present(hub, admission))

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)


class _Present:
    """What is read when it is asked for."""

    def __init__(self, hub: Hub, admission: Admission) -> None:
        self._hub, self._admission = hub, admission

    def collect(self) -> Iterable[Metric]:
        """See `prometheus_client.registry.Collector`."""
        for name, about, value in (
            ("running", "Requests that hold a place.", self._admission.running),
            ("waiting", "Requests that wait for one.", self._admission.waiting),
        ):
            yield GaugeMetricFamily(f"anabranch_num_requests_{name}", about, value)
        labels = ("model_name",)
        used = GaugeMetricFamily(
            "anabranch_kv_cache_usage_perc", "Share of KV pages in use, 0 to 1.", labels=labels
        )
        queries = CounterMetricFamily(
            "anabranch_prefix_cache_queries", "Tokens that branches moved over.", labels=labels
        )
        hits = CounterMetricFamily(
            "anabranch_prefix_cache_hits", "Of these, tokens in the tree already.", labels=labels
        )
        for served in self._hub.models.values():
            tree = served.lm.engine.core.tree
            used.add_metric((served.name,), 1 - tree.pool.free / len(tree.pool))
            queries.add_metric((served.name,), tree.appended)
            hits.add_metric((served.name,), tree.held)
        yield from (used, queries, hits)
