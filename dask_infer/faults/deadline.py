"""Work that may hang, given a deadline.

The work runs in a daemon thread; when the deadline passes the caller goes on and the
thread is abandoned, since nothing can stop a Python thread from outside. Code that
holds the interpreter cannot be timed out.

A calling thread keeps its daemon thread for the next piece of work: one a batch would
build its numeric libraries' thread pools anew each time. It ends when it is idle.
"""

from __future__ import annotations

import contextvars
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from typing import Any, TypeAlias, TypeVar

from dask_infer import config
from dask_infer.errors import PartitionError

T = TypeVar("T")
logger = logging.getLogger(__name__)

#: Seconds after which a thread without work ends.
IDLE = 0.5

_abandoned: set[threading.Thread] = set()
_own = threading.local()


class DeadlineExceeded(Exception):
    """The work did not end in time; its thread goes on, abandoned."""


#: A piece of work, and what comes of it.
_Task: TypeAlias = "tuple[Future[Any], Callable[[], Any]]"


class _DaemonThread:
    """The daemon thread of one calling thread, which alone gives it work."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[_Task] = queue.SimpleQueue()
        self._ending = threading.Lock()
        #: No more work is taken.
        self.ended = False
        self.thread = threading.Thread(target=self._run, daemon=True)

    def take(self, task: _Task, name: str) -> bool:
        """Start a piece of work; return whether the thread is there for it."""
        started = self.thread.ident is not None
        if started and not self.thread.is_alive():  # it is another process's, forked
            return False
        with self._ending:
            if self.ended:
                return False
            self.thread.name = name
            self._tasks.put(task)
        if self.thread.ident is None:
            self.thread.start()
        return True

    def leave(self) -> None:
        """Have the thread end with the work that it is at."""
        with self._ending:
            self.ended = True

    def _run(self) -> None:
        while not self.ended:
            try:
                future, work = self._tasks.get(timeout=IDLE)
            except queue.Empty:
                with self._ending:
                    self.ended = self._tasks.empty()
                continue
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
            # An error holds this frame.
            del future, work


def within(seconds: float | None, work: Callable[[], T], *, what: str) -> T:
    """Return ``work()``, or raise `DeadlineExceeded` after so many seconds.

    Without a deadline the work runs in the calling thread; with one it sees a copy of
    the caller's context variables.

    Raises
    ------
    PartitionError
        If as many threads as ``infer.errors.max-abandoned-threads`` are left behind
        already: each holds a model and a batch, and perhaps a core.
    """
    if seconds is None:
        return work()
    most, left = config.get("errors.max-abandoned-threads"), abandoned_threads()
    if len(left) >= most:
        raise PartitionError(
            f"{what} was not started: {len(left)} threads of this process hang beyond "
            "their timeout already, which is all that "
            "infer.errors.max-abandoned-threads allows; restart the worker, and raise "
            "timeout= or keep out the rows that hang"
        )
    future: Future[T] = Future()
    task = (future, partial(contextvars.copy_context().run, work))
    runner: _DaemonThread | None = getattr(_own, "runner", None)
    if runner is None or not runner.take(task, f"infer-{what}"):
        runner = _own.runner = _DaemonThread()
        runner.take(task, f"infer-{what}")
    if not wait([future], seconds).done:
        runner.leave()
        _own.runner = None
        _abandoned.add(runner.thread)
        logger.warning(
            "%s did not end within %g s; its thread is abandoned (%d in this process)",
            what,
            seconds,
            len(abandoned_threads()),
        )
        raise DeadlineExceeded(f"{what} did not end within {seconds:g} s")
    try:
        return future.result()
    finally:
        # Else an error, its traceback and this frame hold each other, and all that
        # the work's frames hold, until the next garbage collection.
        del future, task


def abandoned_threads() -> list[threading.Thread]:
    """Threads that outlived their deadline and are still running."""
    # Other threads may add theirs meanwhile.
    _abandoned.difference_update([t for t in [*_abandoned] if not t.is_alive()])
    return [*_abandoned]
