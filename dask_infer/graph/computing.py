"""Predictions that are about to be computed, as the client finds out.

Dask lowers an expression on the client for every function that computes it, with every
scheduler (dask 2026.8.0). Nothing here holds data.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

from dask_infer.metrics.sums import Label

#: Names that are remembered, the latest.
KEPT = 256

#: Called with each prediction that is lowered.
listeners: list[Callable[[Any], None]] = []
#: Jobs that run inside the tasks of a name, which is a key without its number.
_jobs_of_tasks: OrderedDict[str, tuple[Label, ...]] = OrderedDict()


def announce(node: Any) -> None:
    """Inform all listeners of a prediction that is lowered."""
    for listener in list(listeners):
        listener(node)


def name_tasks(name: str, nodes: Iterable[Any]) -> None:
    """Remember which predictions the tasks of a name run."""
    _jobs_of_tasks[name] = tuple(label for node in nodes for label, _ in node.counted)
    _jobs_of_tasks.move_to_end(name)
    while len(_jobs_of_tasks) > KEPT:
        _jobs_of_tasks.popitem(last=False)


def jobs_of_task(key: Any) -> tuple[Label, ...]:
    """Return the jobs of a task by its key.

    Dask fuses once more where it persists, under a name of its own that contains ours:
    then the latest job of a model so named.
    """
    name = key[0] if isinstance(key, tuple) else key
    if name in _jobs_of_tasks:
        return _jobs_of_tasks[name]
    models = {part for part in str(name).split("-") if part.startswith("predict")}
    for known, labels in reversed(_jobs_of_tasks.items()) if models else ():
        if models & set(known.split("-")):
            return labels
    return ()
