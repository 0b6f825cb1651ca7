"""Work that may hang, given a deadline.

The work runs in a daemon thread; when the deadline passes the caller goes on and the
thread is abandoned, since nothing can stop a Python thread from outside. Code that
holds the interpreter cannot be timed out.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from dask_infer import config
from dask_infer.errors import PartitionError

T = TypeVar("T")
logger = logging.getLogger(__name__)

_abandoned: set[threading.Thread] = set()


class DeadlineExceeded(Exception):
    """The work did not end in time; its thread goes on, abandoned."""


def within(seconds: float | None, work: Callable[[], T], *, what: str) -> T:
    """Return ``work()``, or raise `DeadlineExceeded` after so many seconds.

    Without a deadline the work runs in the calling thread.

    Raises
    ------
    PartitionError
        If as many threads as ``infer.errors.max-abandoned-threads`` are left behind
        already: each holds a model and a batch, and perhaps a core.
    """
    if seconds is None:
        return work()
    _refuse_more(what)
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name=f"infer-{what}", daemon=True)
    thread.start()
    thread.join(seconds)
    if failure:
        try:
            raise failure[0]
        finally:
            # Else the error, its traceback and this frame hold each other, and all
            # that the work's frames hold, until the next garbage collection.
            failure.clear()
    if outcome:
        return outcome[0]
    _abandoned.add(thread)
    logger.warning(
        "%s did not end within %g s; its thread is abandoned (%d in this process)",
        what,
        seconds,
        len(abandoned_threads()),
    )
    raise DeadlineExceeded(f"{what} did not end within {seconds:g} s")


def _refuse_more(what: str) -> None:
    most, left = config.get("errors.max-abandoned-threads"), abandoned_threads()
    if len(left) >= most:
        raise PartitionError(
            f"{what} was not started: {len(left)} threads of this process hang beyond "
            "their timeout already, which is all that "
            "infer.errors.max-abandoned-threads allows; restart the worker, and raise "
            "timeout= or keep out the rows that hang"
        )


def abandoned_threads() -> list[threading.Thread]:
    """Threads that outlived their deadline and are still running."""
    for thread in list(_abandoned):
        if not thread.is_alive():
            _abandoned.discard(thread)
    return list(_abandoned)
