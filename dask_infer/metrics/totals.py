"""The counters of this process: recorders that are open, and sums of those closed.

Bounded whatever runs: of each worker the latest jobs and models have their own sums,
older ones are added to the model, or to `EARLIER`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from dask_infer.metrics.recorder import Recorder, ambient
from dask_infer.metrics.sums import Label, Sums

#: Jobs of a worker with sums of their own, the latest.
JOBS = 8
#: Models and stages of a worker with sums of their own, the latest.
MODELS = 100
#: Stands for the models before.
EARLIER = "earlier models"


class Totals:
    """Sums of a process by worker and label, for all threads."""

    def __init__(self) -> None:
        self._open: set[Recorder] = set()
        #: By worker; the label that was written last is the last one.
        self._closed: dict[str, OrderedDict[Label, Sums]] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        labels = sum(map(len, self._closed.values()))
        return f"<Totals {labels} labels, {len(self._open)} open>"

    def open(self, recorder: Recorder) -> None:
        """Have a recorder seen while it is written."""
        with self._lock:
            self._open.add(recorder)

    def close(self, recorder: Recorder) -> Sums:
        """Keep and return the sums of a recorder that is written no more."""
        with self._lock:
            self._open.discard(recorder)
            sums = recorder.close()
            closed = self._closed.setdefault(recorder.worker, OrderedDict())
            known = recorder.label in closed
            self._keep(closed, recorder.label, sums)
            if not known:
                self._fold(closed)
        return sums

    def snapshot(self, worker: str) -> dict[Label, Sums]:
        """Return all that was ever counted for a worker, and its levels now."""
        with self._lock:
            result = {label: Sums() for label in self._closed.get(worker, ())}
            for label, sums in self._closed.get(worker, {}).items():
                result[label].add(sums)
            for recorder in self._open:
                if recorder.worker == worker:
                    result.setdefault(recorder.label, Sums()).add(recorder.sums())
        return result

    def forget(self, worker: str) -> None:
        """Drop a worker that has ended; others of this process go on."""
        with self._lock:
            self._closed.pop(worker, None)

    def _keep(self, closed: OrderedDict[Label, Sums], label: Label, sums: Sums) -> None:
        closed.setdefault(label, Sums()).add(sums, levels=False)
        closed.move_to_end(label)

    def _fold(self, closed: OrderedDict[Label, Sums]) -> None:
        """Add the oldest jobs to their models, and the oldest models to `EARLIER`."""
        for has_job, most in ((True, JOBS), (False, MODELS)):
            labels = [label for label in closed if bool(label.job) is has_job]
            for label in labels[: max(0, len(labels) - most)]:
                model = label.model if has_job else EARLIER
                older = closed.pop(label)
                self._keep(closed, Label(model, label.stage), older)


#: Those of this process.
totals = Totals()


class recording:
    """Record the calling thread under a label of a worker.

    A class, as its generator took twice as long: it is entered with each partition.

    Parameters
    ----------
    worker
        Its address, or "local"; several workers may share a process.
    label
        What it works for.
    activity
        What it does outside all meters.
    """

    def __init__(self, worker: str, label: Label, activity: str = "other") -> None:
        self.recorder = Recorder(worker, label, activity)
        self._ambient = ambient(self.recorder)

    def __enter__(self) -> Recorder:
        totals.open(self.recorder)
        self._ambient.__enter__()
        return self.recorder

    def __exit__(self, *error: Any) -> None:
        self._ambient.__exit__(*error)
        #: What was recorded.
        self.sums = totals.close(self.recorder)
