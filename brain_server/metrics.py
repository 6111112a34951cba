"""Figures of the engine in Prometheus' format, read when they are scraped.

Labels are names of tiers, never of students.
"""

from collections.abc import Iterable
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from brain_server.torch_engine import EngineCounts


class CountingEngine(Protocol):
    """An engine that counts what it does."""

    @property
    def counts(self) -> EngineCounts:
        """Figures, from any thread."""
        ...


class EngineCollector(Collector):
    """Shows an engine's counts."""

    def __init__(self, engine: CountingEngine) -> None:
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        """Reads the counts once."""
        counts = self._engine.counts
        yield GaugeMetricFamily("aivo_engine_waiting", "Calls that wait for their turn.", counts.waiting)
        yield CounterMetricFamily("aivo_engine_tokens", "Tokens decoded.", counts.tokens)
        lookups = CounterMetricFamily(
            "aivo_engine_adapter_lookups",
            "Adapters asked of a tier.",
            labels=("tier", "hit"),
        )
        evictions = CounterMetricFamily("aivo_engine_adapter_evictions", "Adapters that left a tier.", labels=("tier",))
        for tier, seen in (("host", counts.host), ("slot", counts.slot)):
            lookups.add_metric((tier, "true"), seen.hits)
            lookups.add_metric((tier, "false"), seen.misses)
            evictions.add_metric((tier,), seen.evictions)
        yield lookups
        yield evictions
