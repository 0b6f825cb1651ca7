"""Tracing without side effects: logs, warnings and torch's switches stay as they were.

Tracing runs the user's code without data. It runs under one lock, and mutes the log
records of its own thread only. Random generators are left alone: they belong to the
process, and restoring them would make other threads draw the same numbers twice.
"""

from __future__ import annotations

import gc
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

#: Warning filters and torch's switches are global: one look at a time.
_LOCK = threading.RLock()


@contextmanager
def sandbox() -> Iterator[None]:
    """Run the body with its logs and warnings muted, and compiled code eager."""
    thread = threading.get_ident()

    def elsewhere(record: logging.LogRecord) -> bool:
        return record.thread != thread

    with ExitStack() as stack:
        stack.enter_context(_LOCK)
        for handler in _handlers():
            handler.addFilter(elsewhere)
            stack.callback(handler.removeFilter, elsewhere)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        # Fused kernels of attention check no shapes on fakes.
        attention = torch.backends.mha
        stack.callback(attention.set_fastpath_enabled, attention.get_fastpath_enabled())
        attention.set_fastpath_enabled(False)
        if "torch._dynamo" in sys.modules:  # compiled code crashes on fake tensors
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if gc.isenabled():
            # It walks the many objects of a trace over and over: 0.3 of 2.0 s at 80
            # layers of BERT.
            gc.disable()
            stack.callback(gc.enable)
        yield


def _handlers() -> set[logging.Handler]:
    """Return every handler in use: torch's loggers own one each."""
    known = list(logging.root.manager.loggerDict.values())
    loggers = [logging.root, *(log for log in known if isinstance(log, logging.Logger))]
    handlers = {handler for logger in loggers for handler in logger.handlers}
    return handlers | ({logging.lastResort} if logging.lastResort else set())
