"""What looking at a model must leave as it was: random state, logs, warnings, threads.

Tracing runs the user's code without data. It must not be seen from outside, so it runs
under one lock, draws from generators that are put back, and mutes this thread's records
while those of other threads pass.
"""

from __future__ import annotations

import logging
import random
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch

#: Warning filters and torch's switches are global: one look at a time.
_LOCK = threading.RLock()


@contextmanager
def sandbox() -> Iterator[None]:
    """Run the body so that it leaves no trace in this process."""
    with ExitStack() as stack:
        stack.enter_context(_LOCK)
        stack.enter_context(_muted())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(_random_state())
        stack.enter_context(_slow_attention())
        stack.enter_context(_eager())
        yield


@contextmanager
def _muted() -> Iterator[None]:
    """Drop this thread's log records."""
    thread = threading.get_ident()

    def elsewhere(record: logging.LogRecord) -> bool:
        return record.thread != thread

    handlers = _handlers()
    for handler in handlers:
        handler.addFilter(elsewhere)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(elsewhere)


def _handlers() -> set[logging.Handler]:
    """Return every handler in use: torch's loggers own one each."""
    known = list(logging.root.manager.loggerDict.values())
    loggers = [logging.root, *(log for log in known if isinstance(log, logging.Logger))]
    handlers = {handler for logger in loggers for handler in logger.handlers}
    return handlers | ({logging.lastResort} if logging.lastResort else set())


@contextmanager
def _random_state() -> Iterator[None]:
    """Put back the generators that a builder may seed or draw from."""
    numpy = sys.modules.get("numpy")
    python, arrays = random.getstate(), numpy and numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(arrays)


@contextmanager
def _slow_attention() -> Iterator[None]:
    """Keep attention layers off their fused kernels, which check no shapes on fakes."""
    switch = torch.backends.mha
    enabled = switch.get_fastpath_enabled()
    switch.set_fastpath_enabled(False)
    try:
        yield
    finally:
        switch.set_fastpath_enabled(enabled)


def _eager() -> AbstractContextManager[object]:
    """Let compiled functions run as written: compiled code crashes on fake tensors."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    eager: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return eager
