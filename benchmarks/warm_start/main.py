"""What a second ``compute()`` saves over the first, by the size of the model."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from distributed import Client

import dask_infer
from benchmarks import measure
from benchmarks.model_size.main import build, rows

WORKERS = 2
STEPS = ("first, cold workers", "second", "second client", "after unload()")
HEADER = f"model MB | {' | '.join(STEPS)} | second of the first"


def steps(megabytes: float) -> dict[str, float]:
    """Seconds of each step on a fresh cluster with an empty content store."""
    model = build(megabytes)
    with measure.fresh_store(), measure.cluster(WORKERS) as client:
        first, _ = measure.timed(lambda: compute(model))
        second, _ = measure.timed(lambda: compute(model))
        with Client(client.scheduler.address):
            other, _ = measure.timed(lambda: compute(model))
        dask_infer.unload(client=client)
        again, _ = measure.timed(lambda: compute(model))
    return dict(zip(STEPS, (first, second, other, again), strict=True))


def compute(model: torch.nn.Module) -> Any:
    """One call of a user: state the prediction and compute it."""
    return rows().infer.predict(model).compute()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", type=float, default=[1, 100, 1000])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    calls = {f"{size:g}": lambda size=size: steps(size) for size in arguments.sizes}
    lines = []
    for size, runs in measure.interleave(calls, arguments.rounds).items():
        medians = [measure.median([run[step] for run in runs]) for step in STEPS]
        times = [f"{value:.2f}" for value in medians]
        lines.append([size, *times, f"{medians[1] / medians[0]:.3f}"])
    print(measure.machine(), measure.table(HEADER.split(" | "), lines), sep="\n\n")


if __name__ == "__main__":
    main()
