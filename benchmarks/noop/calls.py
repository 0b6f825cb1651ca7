"""How many files and Python calls of the package a batch passes through.

One partition, the model does nothing, under the synchronous scheduler. What grows with
the number of batches belongs to a batch, the rest to the partition.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import dask
import dask.dataframe as dd
import torch

import dask_infer
from benchmarks import measure
from benchmarks.noop.functions import make_frame, noop

PACKAGE = Path(dask_infer.__file__).parent

#: Rows of a batch.
SIZE = 10

HEADER = "model | files a batch | calls a batch | files a partition | calls | us"

Calls = Counter[tuple[str, str]]


def predict(model: Any, batches: int) -> Callable[[], Any]:
    """Return what predicts one partition of so many batches."""
    frame = make_frame(0, batches * SIZE)
    source = dd.from_pandas(frame, npartitions=1)
    meta = "float32" if model is noop else None
    predicted = source.infer.predict(model, columns="a", batch_size=SIZE, meta=meta)
    return lambda: predicted.compute(scheduler="sync")


def counted(work: Callable[[], Any]) -> Calls:
    """Calls of the package's functions while `work` runs, by file and name."""
    calls: Calls = Counter()
    prefix = f"{PACKAGE}/"

    def called(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(prefix):
            calls[code.co_filename.removeprefix(prefix), code.co_qualname] += 1

    sys.setprofile(called)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


def of_a_batch(model: Any, batches: int) -> tuple[Calls, Calls]:
    """Calls that each batch makes, and all calls of a partition of one batch."""
    one, many = predict(model, 1), predict(model, 1 + batches)
    one(), many()  # loads, and what is remembered of a first forward
    once, calls = counted(one), counted(many)
    grown = {c: round((n - once[c]) / batches) for c, n in calls.items()}
    return Counter({call: n for call, n in grown.items() if n}), once


def microseconds(model: Any, batches: int, rounds: int) -> float:
    """CPU time of a batch: the median of `rounds`."""
    work = predict(model, batches)
    work()
    times = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        times.append(1e6 * (time.process_time() - start) / batches)
    return measure.median(times)


def files(calls: Calls) -> int:
    """Number of files that the calls are in."""
    return len({file for file, _ in calls})


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--verbose", action="store_true", help="list the calls")
    arguments = parser.parse_args()
    dask.config.set({"infer.batch.remember": None})
    lines = []
    for name, model in {"function": noop, "module": torch.nn.Identity()}.items():
        batch, once = of_a_batch(model, arguments.batches)
        cost = microseconds(model, arguments.batches, arguments.rounds)
        counts = [files(batch), batch.total(), files(once), once.total()]
        lines.append([f"`{name}`", *counts, f"{cost:.1f}"])
        if arguments.verbose:
            listed = (f"{n} {f} {q}" for (f, q), n in sorted(batch.items()))
            print(name, *listed, sep="\n  ")
    print(measure.machine(), measure.table(HEADER.split(" | "), lines), sep="\n\n")


if __name__ == "__main__":
    main()
