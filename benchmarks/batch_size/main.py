"""The automatic batch size against the best fixed one of a sweep.

Everything runs in this process, one partition after the other, on one torch thread: the
question is the size, not the cluster. Sizes take turns, so a busy machine slows all.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import Any

import dask
import dask.dataframe as dd
import torch

import dask_infer
from benchmarks import measure
from benchmarks.batch_size.models import MODELS, ROWS, build, frame
from dask_infer.replica.cache import cache

SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
HEADER = "model | auto settled at | best fixed | auto / best | rows to settle | of all"


def job(model: torch.nn.Module, ddf: Any, size: int | str) -> float:
    """CPU seconds of one job; what waits for a core does not count."""
    pred = ddf.infer.predict(model, columns="x", keep=False, batch_size=size)
    start = time.process_time()
    pred.compute()
    return time.process_time() - start


def settle(model: torch.nn.Module, ddf: Any) -> tuple[int, int]:
    """Have the size found anew; return it and the rows that it took."""
    dask_infer.unload()
    seen = 0
    for number in range(ddf.npartitions):
        part = ddf.partitions[number]
        part.infer.predict(model, columns="x", keep=False).compute()
        (replica,) = cache.replicas()
        (policy,) = replica.sizes.policies()
        if policy.settled:
            return policy.size, policy.spent
        seen = replica.rows
    return policy.size, seen


def measured(name: str, rounds: int, scale: float) -> list[object]:
    """Line of the table for one model."""
    model, shape = build(name)
    rows = int(ROWS[name] * scale)
    part = frame(shape, rows // 8)
    ddf = dd.concat([dd.from_pandas(part, npartitions=1)] * 8)
    with dask.config.set({"infer.batch.remember": None}):
        size, taken = settle(model, ddf)
        sizes: list[int | str] = ["auto", *SIZES]
        calls = {str(size): partial(job, model, ddf, size) for size in sizes}
        times = measure.interleave(calls, rounds)
    seconds = {name: min(runs) for name, runs in times.items()}
    best = min((s for s in seconds if s != "auto"), key=seconds.__getitem__)
    print(name, {key: round(value, 2) for key, value in seconds.items()}, flush=True)
    ratio = seconds["auto"] / seconds[best]
    share = f"{100 * taken / ROWS[name]:.1f} %"
    return [name, size, best, f"{ratio:.3f}", taken, share]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=0.03, help="of the rows timed")
    arguments = parser.parse_args()
    measure.confine(1)
    # Cores were counted when Dask was imported: two threads on one core wait in loops.
    one_core = {"scheduler": "sync", "infer.replica.cpu-threads": 1}
    with measure.fresh_store(), dask.config.set(one_core):
        lines = [
            measured(n, arguments.rounds, arguments.scale) for n in arguments.models
        ]
    print(measure.machine(), measure.table(HEADER.split(" | "), lines), sep="\n\n")


if __name__ == "__main__":
    main()
