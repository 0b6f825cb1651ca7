"""Counters of one model, stage and job, as they are sent and added up."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

#: What a thread that runs batches can be doing, in the order of a partition's path.
ACTIVITIES = (
    "read",
    "load",
    "encode",
    "wait",
    "transfer",
    "forward",
    "decode",
    "other",
    "idle",
)


class Label(NamedTuple):
    """What counters are about.

    `model` is name and content key, so that two models of one name differ. `stage` is
    None for the threads of partitions, which count each row once under every layout.
    `job` is empty where jobs share one sum: for stages, and for jobs of long ago.
    """

    model: str
    stage: int | None = None
    job: str = ""


@dataclass
class Sums:
    """Cumulative numbers, and levels of the moment; any name may stand in them.

    Newer versions of this package may send names that this one never heard of: they are
    added up like the others.
    """

    #: rows_in, rows, batches, forwards, failed_rows, halvings, partitions, ...
    counts: dict[str, float] = field(default_factory=dict)
    #: Seconds of threads by activity.
    seconds: dict[str, float] = field(default_factory=dict)
    #: What is so now: partitions that run, microbatches inside a window, its size.
    levels: dict[str, float] = field(default_factory=dict)

    def add(self, other: Sums, *, levels: bool = True) -> None:
        """Add the numbers of `other`, those of the moment only where asked."""
        _add(self.counts, other.counts)
        _add(self.seconds, other.seconds)
        if levels:
            _add(self.levels, other.levels)

    def since(self, earlier: Sums | None) -> Sums:
        """Return what was added after `earlier`; levels stay as they are."""
        if earlier is None:
            return self
        counts = _less(self.counts, earlier.counts)
        seconds = _less(self.seconds, earlier.seconds)
        return Sums(counts, seconds, self.levels)

    def count(self, name: str) -> int:
        """Return a counter; 0 where nothing was counted."""
        return int(self.counts.get(name, 0))


def to_message(sums: Mapping[Label, Sums]) -> list[list[Any]]:
    """Return sums as plain lists and dicts, which JSON and msgpack take."""
    return [
        [*label, each.counts, each.seconds, each.levels] for label, each in sums.items()
    ]


def from_message(message: Iterable[Any]) -> dict[Label, Sums]:
    """Return what `to_message` made a message of."""
    return {
        Label(model, stage, job): Sums(counts, seconds, levels)
        for model, stage, job, counts, seconds, levels, *_ in message
    }


def total(parts: Iterable[Mapping[Label, Sums]]) -> dict[Label, Sums]:
    """Return the sum of all parts, in sums of its own."""
    result: dict[Label, Sums] = {}
    for part in parts:
        for label, sums in part.items():
            result.setdefault(label, Sums()).add(sums)
    return result


def fold(into: OrderedDict[Label, Sums], label: Label, sums: Sums) -> None:
    """Add sums of what has ended, which has no levels, as the latest ones."""
    into.setdefault(label, Sums()).add(sums, levels=False)
    into.move_to_end(label)


def _add(into: dict[str, float], other: Mapping[str, float]) -> None:
    for name, value in other.items():
        into[name] = into.get(name, 0) + value


def _less(now: Mapping[str, float], earlier: Mapping[str, float]) -> dict[str, float]:
    return {name: value - earlier.get(name, 0) for name, value in now.items()}
