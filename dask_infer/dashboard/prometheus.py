"""The counters as series for Prometheus, at the scheduler's ``/metrics``.

Dask writes out what is registered with `prometheus_client`, once in a process: one
collector there reads from the newest scheduler.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from dask_infer.dashboard.cluster_counters import ClusterCounters, replica_label
from dask_infer.metrics.sums import Label, Sums

LABELS = ("model", "stage", "worker")
#: Counters by their names in `Sums`; Prometheus adds ``_total``.
COUNTERS = {
    "rows": "Rows predicted",
    "failed_rows": "Rows left out because they failed",
    "forwards": "Forwards of batches and microbatches",
    "halvings": "Batches halved because memory ran out",
    "partitions": "Partitions predicted",
    "loads": "Models loaded",
}
#: Gauges by their names in `Sums`.
GAUGES = {
    "partitions": ("running_partitions", "Partitions being predicted"),
    "inside": ("window_microbatches", "Microbatches inside the windows"),
    "window": ("window_size", "Microbatches that the windows admit"),
}
#: Stands for all workers that left.
GONE = "gone"


class InferCollector:
    """All series of the scheduler that was started last."""

    counters: weakref.ref[ClusterCounters] | None = None

    def describe(self) -> list[Any]:
        """Return nothing: registering would collect at once."""
        return []

    def collect(self) -> Iterator[Any]:
        """Yield the series of all workers, and of those that left."""
        counters = None if self.counters is None else self.counters()
        if counters is None:
            return
        counters.update()
        lines = _lines(counters)
        for name, text in COUNTERS.items():
            values = ((at, s.counts[name]) for at, s in lines if name in s.counts)
            yield _filled(CounterMetricFamily, name, text, values)
        yield _filled(
            CounterMetricFamily,
            "time_seconds",
            "Seconds of threads by what they did",
            (([*at, what], n) for at, s in lines for what, n in s.seconds.items()),
            "activity",
        )
        for name, (series, text) in GAUGES.items():
            values = ((at, s.levels[name]) for at, s in lines if name in s.levels)
            yield _filled(GaugeMetricFamily, series, text, values)
        yield _filled(
            GaugeMetricFamily,
            "replica_bytes",
            "Bytes of resident models",
            _replica_bytes(counters).items(),
            "device",
        )


def _filled(
    family: Any,
    name: str,
    text: str,
    values: Iterable[tuple[Sequence[str], float]],
    *more: str,
) -> Any:
    """Return the values of a series by their labels, of which it may have more."""
    made = family(f"dask_infer_{name}", text, labels=(*LABELS, *more))
    for labels, value in values:
        made.add_metric(labels, value)
    return made


def _lines(counters: ClusterCounters) -> list[tuple[list[str], Sums]]:
    workers = counters.sums.workers.items()
    parts = [(address, worker.latest.by_model) for address, worker in workers]
    parts.append((GONE, dict(counters.sums.gone)))
    return [
        (_labels(label, address), sums)
        for address, by_model in parts
        for label, sums in by_model.items()
    ]


def _labels(label: Label, worker: str) -> list[str]:
    return [label.model, "" if label.stage is None else str(label.stage), worker]


def _replica_bytes(counters: ClusterCounters) -> Counter[tuple[str, ...]]:
    sizes = Counter[tuple[str, ...]]()
    for address, worker in counters.sums.workers.items():
        for replica in worker.latest.replicas:
            labels = _labels(replica_label(replica), address)
            sizes[(*labels, replica["device"])] += replica["bytes"]
    return sizes


#: The one of this process; a second one would be registered beside it.
_collector = InferCollector()


def add_series(counters: ClusterCounters) -> None:
    """Have ``/metrics`` of this process show the counters of a scheduler."""
    if _collector.counters is None:
        REGISTRY.register(_collector)
    _collector.counters = weakref.ref(counters)
