"""What the gateway counts, in Prometheus' format. Each gateway has a registry of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from .prefix_cache import PrefixCache

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """The counters. Names of routes and codes are few and fixed, whatever clients send.

    Args:
        inside: How many requests run or wait, asked when metrics are read.
        waiting: How many wait.
        memories: How many memories are kept.
        prefixes: The engine's, if it has any.
    """

    def __init__(
        self,
        inside: Callable[[], float],
        waiting: Callable[[], float],
        memories: Callable[[], float],
        prefixes: PrefixCache | None = None,
    ):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "memslots_requests",
            "Requests, by route and HTTP status; 499 is a client that left.",
            ["route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "memslots_request_seconds",
            "Seconds from a request's arrival to its answer's last byte.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.first_token = Histogram(
            "memslots_first_token_seconds",
            "Seconds from a place at the engine to the first text of the answer.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.tokens = Counter(
            "memslots_tokens",
            "Prompt tokens that the decoder read, tokens of its answers, and the encoder tokens of "
            "texts that prompts read as slots.",
            ["kind"],
            registry=self.registry,
        )
        gauges = {
            "memslots_requests_inside": ("Requests that run or wait.", inside),
            "memslots_requests_waiting": ("Requests that wait for a place.", waiting),
            "memslots_memories": ("Memories that are kept.", memories),
        }
        for name, (about, value) in gauges.items():
            Gauge(name, about, registry=self.registry).set_function(value)
        if prefixes is not None:
            self.registry.register(_PrefixCollector(prefixes))

    def page(self) -> tuple[bytes, str]:
        """The text of `/metrics`, and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


class _PrefixCollector(Collector):
    """Numbers of a prefix cache, which counts by itself.

    Args:
        prefixes: The cache.
    """

    def __init__(self, prefixes: PrefixCache):
        self._prefixes = prefixes

    def collect(self) -> Iterator[Metric]:
        """What is there now."""
        counts = self._prefixes.counts()
        for name, about, count in (
            ("hits", "Questions that began at a memory already read.", counts.hits),
            ("misses", "Questions for which the decoder read the memory.", counts.misses),
            ("evictions", "Memories already read that made room for others.", counts.evictions),
        ):
            yield CounterMetricFamily(f"memslots_prefix_cache_{name}", about, count)
        for name, about, held in (
            ("entries", "Memories already read that are kept.", counts.entries),
            ("bytes", "Bytes that they take, on the decoder's device.", counts.bytes),
            ("limit_bytes", "Bytes that they may take.", self._prefixes.max_bytes),
        ):
            yield GaugeMetricFamily(f"memslots_prefix_cache_{name}", about, held)
