"""Figures for Prometheus: what `stats()` returns, read when scraped (extra `metrics`).

::

    REGISTRY.register(StatsCollector(broadcaster.stats, server.endpoint.stats))

A figure named `..._total` is a counter, any other a gauge; a table of figures has one label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import msgspec
from msgspec import Struct
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

__all__ = ["StatsCollector"]


class StatsCollector(Collector):
    """Exposes the figures of a broadcaster, its endpoints, or whatever else has `stats()`.

    Args:
        *sources: Each returns a struct of numbers and tables of numbers, such as
            `EventBroadcaster.stats` and `WebSocketEndpoint.stats`. They are called in the thread
            that scrapes; `prometheus_client.start_http_server` has one of its own.
        prefix: What the names of the metrics begin with.
    """

    def __init__(self, *sources: Callable[[], Struct], prefix: str = "jobqueue_broadcast") -> None:
        self._sources = sources
        self._prefix = prefix

    def collect(self) -> Iterator[Metric]:
        """Yield the figures as they are now."""
        for source in self._sources:
            for name, value in msgspec.structs.asdict(_read(source)).items():
                yield _metric(f"{self._prefix}_{name}", name, value)

    def describe(self) -> list[Metric]:
        """Return nothing: registering reads no figures."""
        return []


def _read(source: Callable[[], Struct]) -> Struct:
    # From another thread, a table may change while it is summed up; that raises, and is rare.
    for _ in range(3):
        try:
            return source()
        except RuntimeError:
            continue
    return source()


def _metric(full_name: str, name: str, value: float | Mapping[int | str, int]) -> Metric:
    family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
    help_text = name.removesuffix("_total").replace("_", " ")
    if not isinstance(value, Mapping):
        return family(full_name, help_text, value=value)
    metric = family(full_name, help_text, labels=["code"])
    for code, count in value.items():
        metric.add_metric([str(code)], count)
    return metric
