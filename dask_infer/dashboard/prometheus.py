"""The counters as series for Prometheus, at the scheduler's ``/metrics``.

Dask writes out what is registered with `prometheus_client`, once in a process: one
collector there reads from the newest scheduler.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
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
            family = CounterMetricFamily(f"dask_infer_{name}", text, labels=LABELS)
            for labels, sums in lines:
                if name in sums.counts:
                    family.add_metric(labels, sums.counts[name])
            yield family
        seconds = CounterMetricFamily(
            "dask_infer_time_seconds",
            "Seconds of threads by what they did",
            labels=(*LABELS, "activity"),
        )
        for labels, sums in lines:
            for activity, amount in sums.seconds.items():
                seconds.add_metric([*labels, activity], amount)
        yield seconds
        for name, (series, text) in GAUGES.items():
            gauge = GaugeMetricFamily(f"dask_infer_{series}", text, labels=LABELS)
            for labels, sums in lines:
                if name in sums.levels:
                    gauge.add_metric(labels, sums.levels[name])
            yield gauge
        yield _replica_bytes(counters)


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


def _replica_bytes(counters: ClusterCounters) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        "dask_infer_replica_bytes",
        "Bytes of resident models",
        labels=(*LABELS, "device"),
    )
    for address, worker in counters.sums.workers.items():
        sizes: dict[tuple[str, ...], float] = {}
        for replica in worker.latest.replicas:
            key = (*_labels(replica_label(replica), address), replica["device"])
            sizes[key] = sizes.get(key, 0) + replica["bytes"]
        for key, nbytes in sizes.items():
            family.add_metric(key, nbytes)
    return family


#: The one of this process; a second one would be registered beside it.
_collector = InferCollector()


def add_series(counters: ClusterCounters) -> None:
    """Have ``/metrics`` of this process show the counters of a scheduler."""
    if _collector.counters is None:
        REGISTRY.register(_collector)
    _collector.counters = weakref.ref(counters)
