"""The numbers of the page, as columns: what its table and its plots show."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from dask_infer.dashboard.cluster_counters import ClusterCounters, replica_label
from dask_infer.metrics.cluster_sums import RECENT
from dask_infer.metrics.sums import ACTIVITIES, Label, Sums

#: Seconds for which lines are fresh, at least, and more for each line: workers of a
#: large cluster report as rarely (benchmarks/seeing).
FRESH, FRESH_LINE = 0.4, 0.002
#: Lines of a table that are read at a glance; more are added up by model and stage.
GLANCE = 12


@dataclass
class TableRow:
    """One line of the table: a model or stage on one worker, or on several."""

    label: Label
    workers: list[str] = field(default_factory=list)
    devices: set[str] = field(default_factory=set)
    nbytes: int = 0
    #: Served by the replicas that are resident; what is counted where there is none.
    rows: int = 0
    rate: float = 0.0
    sums: Sums = field(default_factory=Sums)
    recent: Sums = field(default_factory=Sums)
    resident: bool = False
    #: Shards of the stage that are here; empty where it has none.
    shards: set[int] = field(default_factory=set)

    def add(self, other: TableRow) -> None:
        """Add the same model and stage on another worker."""
        self.workers += other.workers
        self.devices |= other.devices
        self.nbytes += other.nbytes
        if not other.shards or 0 in other.shards:  # all shards run the same rows
            self.rows += other.rows
        self.shards |= other.shards
        self.rate += other.rate
        self.sums.add(other.sums)
        self.recent.add(other.recent)
        self.resident |= other.resident

    @property
    def batch(self) -> float:
        """Rows of a forward: of late, or where nothing ran of late of all of them."""
        for sums in (self.recent, self.sums):
            forwards = sums.count("forwards")
            if forwards:
                return sums.count("rows") / forwards
        return float("nan")

    @property
    def window(self) -> str:
        """Microbatches inside, of how many."""
        levels = self.sums.levels
        if "window" not in levels:
            return ""
        return f"{levels['inside']:.0f} / {levels['window']:.0f}"

    @property
    def part(self) -> str:
        """Which part of the model's work it is."""
        if self.label.stage is not None:
            stage = f"stage {self.label.stage}"
            if len(self.shards) == 1:
                return f"{stage}, shard {next(iter(self.shards))}"
            count = len(self.shards)
            return f"{stage}, {count} shards" if count else stage
        return "whole model" if self.resident else "feeders"


def table_rows(counters: ClusterCounters) -> list[TableRow]:
    """Return a row for each worker's replicas, stages, and feeders of stages.

    All parts of all open pages share them for a while.
    """
    made, known = _table_rows.get(counters, (0.0, []))
    if time.monotonic() - made > max(FRESH, FRESH_LINE * len(known)):
        known = _made(counters)
        _table_rows[counters] = time.monotonic(), known
    return known


_table_rows: weakref.WeakKeyDictionary[
    ClusterCounters, tuple[float, list[TableRow]]
] = weakref.WeakKeyDictionary()


def _made(counters: ClusterCounters) -> list[TableRow]:
    sums = counters.sums
    rates = sums.rates("rows")
    found: list[TableRow] = []
    for address, worker in sums.workers.items():
        latest = worker.latest
        by_label: dict[Label, TableRow] = {}
        recent = worker.recent(RECENT)
        for replica in latest.replicas:
            label = replica_label(replica)
            line = by_label.setdefault(label, TableRow(label, [address], resident=True))
            line.devices.add(replica["device"])
            line.nbytes += replica["bytes"]
            line.rows += replica["rows"]
            if replica.get("shard") is not None:
                line.shards.add(replica["shard"])
        for label, each in latest.by_model.items():
            active = each.levels or recent[label].count("rows")
            if label not in by_label and active:
                by_label[label] = TableRow(label, [address], rows=each.count("rows"))
        for label, line in by_label.items():
            line.rate = rates.get((address, label), 0.0)
            line.sums = latest.by_model.get(label, Sums())
            line.recent = recent.get(label, Sums())
        found += by_label.values()
    return sorted(found, key=_order)


def by_model(found: Iterable[TableRow]) -> list[TableRow]:
    """Add the lines of all workers up, by model and stage."""
    together: dict[Label, TableRow] = {}
    for line in found:
        together.setdefault(line.label, TableRow(line.label)).add(line)
    return sorted(together.values(), key=_order)


def _order(line: TableRow) -> tuple[Any, ...]:
    stage = line.label.stage
    return (line.label.model, -1 if stage is None else stage, line.workers)


def replica_table(found: list[TableRow]) -> dict[str, list[Any]]:
    """Return the columns of the table of replicas and stages."""
    return {
        "model": [line.label.model for line in found],
        "part": [line.part for line in found],
        "worker": [_workers(line) for line in found],
        "device": [", ".join(sorted(line.devices)) for line in found],
        "bytes": [line.nbytes if line.resident else float("nan") for line in found],
        "rows": [line.rows for line in found],
        "rate": [line.rate for line in found],
        "batch": [line.batch for line in found],
        "window": [line.window for line in found],
        "failed": [line.sums.count("failed_rows") for line in found],
        "halvings": [line.sums.count("halvings") for line in found],
    }


def _workers(line: TableRow) -> str:
    count = len(line.workers)
    return line.workers[0] if count == 1 else f"{count} workers"


def time_table(found: list[TableRow]) -> tuple[bool, dict[str, list[Any]]]:
    """Return shares of time by activity, in percent, and whether they are of late.

    Where nothing ran of late they are of all the time since the workers started, of
    which stages without work take no part.
    """
    late = any(_busy(line.recent) for line in found)
    rows = []
    for line in found:
        seconds = dict((line.recent if late else line.sums).seconds)
        if not late:
            seconds.pop("idle", None)
        total = sum(seconds.values())
        if total > 0:
            where = f"{line.label.model}, {line.part}"
            if len(line.workers) == 1 and len(found) > 1:
                where += f" on {line.workers[0].rpartition('/')[2]}"
            rows.append((where, seconds, total))
    columns: dict[str, list[Any]] = {"where": [where for where, _, _ in rows]}
    for activity in ACTIVITIES:
        columns[activity] = [100 * s.get(activity, 0) / total for _, s, total in rows]
    columns["seconds"] = [total for _, _, total in rows]
    return late, columns


def _busy(sums: Sums) -> bool:
    return any(s > 0 for a, s in sums.seconds.items() if a != "idle")


def summary(counters: ClusterCounters, found: list[TableRow]) -> str:
    """Return the page's first sentence."""
    sums = counters.sums
    if not sums.workers:
        return (
            "No prediction has run on this cluster yet. The first "
            "ddf.infer.predict(model).compute() fills this page: replicas and stages, "
            "rows a second, where the time goes, windows, failed rows."
        )
    total = [each for label, each in sums.by_model().items() if label.stage is None]
    rows = sum(each.count("rows") for each in total)
    failed = sum(each.count("failed_rows") for each in total)
    running = sum(each.levels.get("partitions", 0) for each in total)
    rate = sum(line.rate for line in found if line.label.stage is None)
    models = len({line.label.model for line in found})
    return (
        f"{models} model{'s' * (models != 1)} on {len(sums.workers)} of "
        f"{len(counters.states)} workers · "
        f"{running:.0f} partitions running · {rows:,} rows predicted · "
        f"{rate:,.0f} rows/s · {failed:,} failed rows"
    )
