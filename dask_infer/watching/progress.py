"""Progress in rows, for everything that computes predictions.

The client's thread computes; another one reads counters and shows lines, and never
stops what runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Iterator
from typing import Any

from dask.base import is_dask_collection
from dask.callbacks import Callback

from dask_infer._dask import is_lazy
from dask_infer.graph.computing import jobs_of_task, listeners
from dask_infer.metrics.sums import Label, Sums
from dask_infer.replica.residents import current_client
from dask_infer.watching.counts import Counts
from dask_infer.watching.display import Lines, ProgressLine, open_display
from dask_infer.watching.job_progress import JobProgress

logger = logging.getLogger(__name__)

#: Seconds between two looks.
INTERVAL = 0.3
#: Seconds that the last heartbeats may take.
PATIENCE = 4.0


def progress(persisted: Any = None) -> Progress | Awaitable[None] | None:
    """Show how far predictions are, in rows: one line a model.

    Used as::

        with dask_infer.progress():
            pred.to_parquet(path)

        dask_infer.progress(pred.persist())

    It ends at what was really done, also where an error or Ctrl-C stops it; Ctrl-C
    cancels what was persisted.

    Parameters
    ----------
    persisted
        A persisted collection to wait for, or several. None returns a context manager,
        in which `compute`, `to_parquet` and `dask.compute`, on every scheduler, are
        shown.

    Returns
    -------
    Progress or None
        A context manager: ``async with`` where the client is asynchronous. Without
        value where `persisted` is given, an awaitable for an asynchronous client.

    Raises
    ------
    RuntimeError
        On ``with`` in a coroutine of an asynchronous client.
    ValueError
        If what is given is not a persisted collection.
    """
    if persisted is None:
        return Progress()
    work = Persisted(persisted)
    if any(client.asynchronous for client in work.clients):
        return work.wait_later()
    work.wait()
    return None


class Progress:
    """Shows the predictions that are computed meanwhile; see `progress`."""

    def __init__(self, persisted: Persisted | None = None) -> None:
        self._jobs: dict[Label, JobProgress] = {}
        self._clients: list[Any] = []
        self._seen: Counter[str] = Counter()
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._state = "running"
        #: Partitions that a scheduler of this process finished, by job.
        self._finished: Counter[Label] = Counter()
        self._persisted = persisted
        self._callback = Callback(posttask=self._task_done)
        if persisted is not None:
            self._jobs, self._clients = persisted.jobs(), persisted.clients
        self._thread = threading.Thread(
            target=self._run, name="dask-infer-progress", daemon=True
        )

    def __repr__(self) -> str:
        return repr(Lines(self._lines())) or "<Progress of no prediction yet>"

    def _repr_html_(self) -> str | None:
        return Lines(self._lines())._repr_html_() if self._jobs else None

    def __enter__(self) -> Progress:
        client = current_client()
        if client is not None and client.asynchronous and self._persisted is None:
            raise RuntimeError(
                "the client is asynchronous: use `async with dask_infer.progress():`"
            )
        self._start()
        self._ready.wait(PATIENCE)
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._finish(stopped=error is not None)
        # A client that was made meanwhile may need this thread for its event loop.
        if not any(client.asynchronous for client in self._clients):
            self._thread.join()

    async def __aenter__(self) -> Progress:
        self._start()
        await asyncio.to_thread(self._ready.wait, PATIENCE)
        return self

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._finish(stopped=error is not None)
        await asyncio.to_thread(self._thread.join)

    # --- in the threads that compute ---------------------------------------------

    def _start(self) -> None:
        self._display = open_display()
        from_now = self._persisted is None
        self._counts = Counts(from_now=from_now, local=from_now or not self._clients)
        client = current_client()
        if from_now and client is not None:
            self._clients.append(client)
        listeners.append(self._expect)
        self._callback.register()
        self._thread.start()

    def _finish(self, *, stopped: bool) -> None:
        with contextlib.suppress(ValueError, KeyError):
            listeners.remove(self._expect)
            self._callback.unregister()
        if self._persisted is not None:
            stopped |= self._persisted.is_failed()
        self._state = "stopped" if stopped else "done"
        self._stop.set()

    def _expect(self, node: Any) -> None:
        """Take note of a prediction that will be computed."""
        if threading.current_thread() is self._thread:  # it only counts rows
            return
        client = current_client()
        if client is not None and client not in self._clients:
            self._clients.append(client)
        seen = self._seen[node._name]
        self._seen[node._name] += 1
        for label, what in node.counted:
            known = self._jobs.get(label)
            # Where it is lowered it was seen before, or optimized by an earlier call.
            if node.lowered and known is not None:
                continue
            job = known or JobProgress(label)
            job.adds = what
            # Seen again, it is computed again, unless nothing ran since.
            if not seen or job.done:
                job.frames.append(node.frame)
            self._jobs[label] = job

    def _task_done(self, key: Any, *rest: Any) -> None:
        self._finished.update(jobs_of_task(key))

    # --- in the thread that shows ------------------------------------------------

    def _run(self) -> None:
        try:
            try:
                self._look()
            finally:
                self._ready.set()
            while not self._stop.wait(INTERVAL):
                self._look()
                self._display.show(self._lines())
            self._settle()
        except Exception:
            logger.warning("progress cannot be shown any more", exc_info=True)
        with contextlib.suppress(Exception):
            self._display.show(self._lines(), last=True)

    def _look(self) -> dict[Label, Sums]:
        for client in list(self._clients):
            self._counts.add(client)
        sums = self._counts.read()
        finished = self._finished
        if self._persisted is not None:
            finished = self._persisted.finished()
        for label, job in list(self._jobs.items()):
            job.measure()
            job.finished = finished[label]
            job.update(sums.get(label, Sums()))
        return sums

    def _settle(self) -> None:
        """Ask for the last numbers, and wait for those that do not come at once."""
        self._counts.refresh()
        deadline = time.monotonic() + PATIENCE
        while True:
            sums = self._look()
            complete = all(
                job.is_complete(sums.get(label, Sums()))
                for label, job in self._jobs.items()
            )
            late = time.monotonic() > deadline
            if complete or late or self._state == "stopped" or not self._clients:
                return
            time.sleep(INTERVAL / 3)

    def _lines(self) -> list[ProgressLine]:
        jobs = list(self._jobs.values())
        names = Counter(job.name for job in jobs)
        return [job.line(self._state, alone=names[job.name] == 1) for job in jobs]


class Persisted:
    """A persisted collection, of which some partitions may be computed already."""

    def __init__(self, collection: Any) -> None:
        from distributed import futures_of

        several = isinstance(collection, (tuple, list))  # as dask.persist returns them
        items = list(collection) if several else [collection]
        if any(not is_dask_collection(item) or is_lazy(item) for item in items):
            raise ValueError(
                "progress() waits for a persisted collection, such as pred.persist(); "
                "show what is lazy by `with dask_infer.progress(): pred.compute()`"
            )
        self.futures = futures_of(collection)
        self.clients = list({future.client for future in self.futures})
        #: Its partitions by the predictions in them.
        self._keys: dict[Label, list[Any]] = {}
        keys = [key for item in items for key in item.__dask_keys__()]
        for key in [future.key for future in self.futures] or keys:
            for label in jobs_of_task(key):
                self._keys.setdefault(label, []).append(key)
        self._futures = {future.key: future for future in self.futures}

    def __repr__(self) -> str:
        return f"<Persisted {len(self.futures)} futures, {len(self._keys)} jobs>"

    def jobs(self) -> dict[Label, JobProgress]:
        """Return the jobs that it came from, with estimated totals."""
        jobs = {label: JobProgress(label) for label in self._keys}
        for label, job in jobs.items():
            job.began_before, job.known = True, None
            job.partitions = len(self._keys[label])
        return jobs

    def finished(self) -> Counter[Label]:
        """Count the partitions that are computed, by job."""
        done = {key for key, future in self._futures.items() if future.done()}
        return Counter(
            {
                label: sum(key in done or key not in self._futures for key in keys)
                for label, keys in self._keys.items()
            }
        )

    def wait(self) -> None:
        """Show progress until all is computed, or failed."""
        from distributed import wait

        with Progress(self), self._cancelled_with():
            for client in self.clients:
                with client.as_current():
                    wait([f for f in self.futures if f.client is client])

    async def wait_later(self) -> None:
        """Do the same on the event loop of the client."""
        from distributed import wait

        async with Progress(self):
            with self._cancelled_with():
                await wait(self.futures)

    @contextlib.contextmanager
    def _cancelled_with(self) -> Iterator[None]:
        try:
            yield
        except (KeyboardInterrupt, asyncio.CancelledError):
            for client in self.clients:
                client.cancel(self.futures)
            raise

    def is_failed(self) -> bool:
        """Whether any of it failed or was cancelled."""
        return any(future.status != "finished" for future in self.futures)
