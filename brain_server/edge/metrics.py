"""Figures of the engine in Prometheus' format.

Labels are names of tiers and of what answered, never of students.
"""

from collections.abc import Iterable
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from brain_server.engine.contract import EngineCounts, Reply, TierCounts
from brain_server.engine.main_brain import RULES
from brain_server.safety.verdict import SafetyVerdict

# Replies: 10 ms to 60 s, about as long as callers wait. Tokens: from 1 ms on.
_REPLY_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class CountingEngine(Protocol):
    """An engine that counts what it does."""

    @property
    def counts(self) -> EngineCounts:
        """Figures, from any thread."""
        ...


class EngineCollector(Collector):
    """Shows an engine's counts, read when they are scraped."""

    def __init__(self, engine: CountingEngine) -> None:
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        """Reads the counts once."""
        counts = self._engine.counts
        yield GaugeMetricFamily("aivo_engine_waiting", "Calls that wait for their turn.", counts.waiting)
        yield GaugeMetricFamily("aivo_engine_running", "Calls that are decoded together now.", counts.running)
        yield CounterMetricFamily("aivo_engine_tokens", "Tokens decoded.", counts.tokens)
        prompts = CounterMetricFamily(
            "aivo_engine_role_prompts", "Prompts that a role of the Main Brain has read.", labels=("role",)
        )
        for role, count in counts.role_prompts.items():
            prompts.add_metric((role,), count)
        yield prompts
        yield from _of_tiers({"host": counts.host, "slot": counts.slot})


class ReplyMetrics:
    """Latencies of replies, as they end."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"aivo_reply_{name}_seconds", what, ("model",), buckets=buckets, registry=registry)

        self._queue = histogram("queue", "From the choice of the adapter to the first step.", _REPLY_BUCKETS)
        self._adapter_load = histogram("adapter_load", "Until the adapter was at hand.", _REPLY_BUCKETS)
        self._first_token = histogram("first_token", "From the call to the first token.", _REPLY_BUCKETS)
        self._token = histogram("token", "Between two tokens of a reply, on average.", _TOKEN_BUCKETS)

    def observe(self, reply: Reply) -> None:
        """Counts a reply that ended well."""
        timing, model = reply.timing, "student" if reply.adapter else "base"
        self._queue.labels(model).observe(timing.queue_ms / 1e3)
        self._adapter_load.labels(model).observe(timing.adapter_load_ms / 1e3)
        self._first_token.labels(model).observe(timing.first_token_ms / 1e3)
        if reply.completion_tokens > 1:
            seconds = (timing.total_ms - timing.first_token_ms) / 1e3
            self._token.labels(model).observe(seconds / (reply.completion_tokens - 1))


class SafetyMetrics:
    """Verdicts on texts, by what was found and done."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._verdicts = Counter(
            "aivo_safety_verdicts",
            "Texts that were screened, by the gravest category found in them.",
            ("category", "action", "text", "guard"),
            registry=registry,
        )

        self._flags = Counter(
            "aivo_safety_flags",
            "Texts that call for an alert, by whether it was recorded or lost.",
            ("outcome",),
            registry=registry,
        )
        self._deliveries = Counter(
            "aivo_safety_webhook_attempts", "Attempts to deliver alerts.", ("outcome",), registry=registry
        )

    def count(self, outcome: str) -> None:
        """Counts a text that calls for an alert; the outcome is `recorded` or `lost`."""
        self._flags.labels(outcome).inc()

    def count_delivery(self, outcome: str) -> None:
        """Counts an attempt of the webhook: `delivered`, `failed`, `given_up` or `unreadable`."""
        self._deliveries.labels(outcome).inc()

    def observe(self, verdict: SafetyVerdict) -> None:
        """Counts a verdict."""
        guard = "rules" if verdict.guard == RULES else "guard"
        labels = (verdict.category or "none", verdict.action.name.lower(), verdict.text.name.lower(), guard)
        self._verdicts.labels(*labels).inc()


def _of_tiers(tiers: dict[str, TierCounts]) -> Iterable[Metric]:
    lookups = CounterMetricFamily(
        "aivo_engine_adapter_lookups", "Lookups of adapters in a tier.", labels=("tier", "hit")
    )
    evictions = CounterMetricFamily(
        "aivo_engine_adapter_evictions", "Adapters that left a tier for others.", labels=("tier",)
    )
    loading = CounterMetricFamily(
        "aivo_engine_adapter_load_seconds", "Time spent on bringing adapters into a tier.", labels=("tier",)
    )
    weights = GaugeMetricFamily("aivo_engine_adapter_bytes", "Adapters' weights in a tier.", labels=("tier",))
    for tier, counts in tiers.items():
        lookups.add_metric((tier, "true"), counts.hits)
        lookups.add_metric((tier, "false"), counts.misses)
        evictions.add_metric((tier,), counts.evictions)
        loading.add_metric((tier,), counts.load_seconds)
        weights.add_metric((tier,), counts.bytes)
    return lookups, evictions, loading, weights
