"""The counters of this process: recorders, and sums of those that have ended.

Bounded whatever runs: of each worker the latest jobs and models have their own sums,
older ones are added to the model, or to `EARLIER`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from dask_infer.metrics.recorder import Recorder
from dask_infer.metrics.sums import Label, Sums, fold, total

#: Jobs of a worker with sums of their own, the latest.
JOBS = 8
#: Models and stages of a worker with sums of their own, the latest.
MODELS = 100
#: Recorders that have ended and are not added yet, at most.
ENDED = 64
#: Stands for the models before.
EARLIER = "earlier models"


class Totals:
    """Sums of a process by worker and label, for all threads.

    Recorders that have ended are added many at a time, for which code and sums have to
    come into the core's caches once (benchmarks/seeing).
    """

    def __init__(self) -> None:
        #: Those that are written, and those that ended and are to be added.
        self._recorders: list[Recorder] = []
        #: How many of them there may be before those that ended are added.
        self._full = ENDED
        #: By worker; the label that was written last is the last one.
        self._closed: dict[str, OrderedDict[Label, Sums]] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        labels = sum(map(len, self._closed.values()))
        return f"<Totals {labels} labels, {len(self._recorders)} recorders>"

    def open(self, recorder: Recorder) -> None:
        """Have a recorder seen from now on; what it recorded stays."""
        with self._lock:
            self._recorders.append(recorder)
            if len(self._recorders) > self._full:
                self._add_ended()

    def snapshot(self, worker: str) -> dict[Label, Sums]:
        """Return all that was ever counted for a worker, and its levels now."""
        with self._lock:
            self._add_ended()
            own = [each for each in self._recorders if each.worker == worker]
            running = [{each.label: each.sums()} for each in own]
            return total([self._closed.get(worker, {}), *running])

    def forget(self, worker: str) -> None:
        """Drop a worker that has ended; others of this process go on."""
        with self._lock:
            self._add_ended()
            self._closed.pop(worker, None)

    def _add_ended(self) -> None:
        running = []
        for recorder in self._recorders:
            if not recorder.ended:
                running.append(recorder)
                continue
            closed = self._closed.setdefault(recorder.worker, OrderedDict())
            fold(closed, recorder.label, recorder.sums())
        for closed in self._closed.values():
            _bound(closed)
        self._recorders = running
        self._full = len(running) + ENDED


def _bound(closed: OrderedDict[Label, Sums]) -> None:
    """Add the oldest jobs to their models, and the oldest models to `EARLIER`."""
    for has_job, most in ((True, JOBS), (False, MODELS)):
        labels = [label for label in closed if bool(label.job) is has_job]
        for label in labels[: max(0, len(labels) - most)]:
            model = label.model if has_job else EARLIER
            fold(closed, Label(model, label.stage), closed.pop(label))


#: Those of this process.
totals = Totals()


class recording(Recorder):
    """A recorder whose numbers are those of this process from when it is entered."""

    __slots__ = ()

    def __enter__(self) -> Recorder:
        totals.open(self)
        return super().__enter__()
