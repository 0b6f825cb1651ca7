"""A pipeline against whole replicas on the same workers, where a worker holds both."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

import dask_infer  # noqa: F401  (registers the accessor)
from benchmarks import measure
from benchmarks.pipeline import model as job
from dask_infer import Layout

HEADER = (
    "workers | contender | rows a microbatch | seconds | range | time ratio | CPU ratio"
    " | first call | CPU s | equal call"
)

HERE = Path(__file__).parent
DATA, PIPELINE = "data-parallel", "pipeline"

Run = dict[str, float]


def expected(rows: int) -> np.ndarray:
    """Return what the model says of the rows."""
    with torch.inference_mode():
        parts = torch.tensor(job.ids(rows)).split(64)
        model = job.build()
        return torch.cat([model(part)[:, 0] for part in parts]).numpy()


def worker_seconds(client: Any) -> float:
    """Return the CPU seconds that all workers have taken so far."""
    return sum(client.run(lambda: sum(psutil.Process().cpu_times()[:2])).values())


def predict(client: Any, frame: Any, layout: Any, right: np.ndarray) -> Run:
    """Run the job once, and see that every row is right; time the call as well."""
    model, started = job.build(), time.process_time()
    call, pred = measure.timed(
        lambda: frame.infer.predict(model, columns="ids", keep=False, parallel=layout)
    )
    call_cpu = time.process_time() - started
    before = worker_seconds(client)
    seconds, result = measure.timed(pred.compute)
    cpu = worker_seconds(client) - before
    np.testing.assert_allclose(result["prediction"], right, atol=1e-4)
    return {"seconds": seconds, "cpu": cpu, "call": call, "call_cpu": call_cpu}


def by_hand(name: str, rows: int, size: int) -> Run:
    """Run one of the programs of `contenders`, which times itself."""
    program = HERE / "contenders" / f"{name}.py"
    command = [sys.executable, str(program), str(rows), str(size)]
    path = os.pathsep.join(
        filter(None, [str(HERE.parents[1]), os.environ.get("PYTHONPATH")])
    )
    answer = measure.run(command, PYTHONPATH=path)
    return {"seconds": answer["seconds"], "cpu": answer["cpu"]}


def compare(workers: int, options: argparse.Namespace) -> list[list[Any]]:
    """Lines of the table for one number of workers."""
    rows, size = options.rows, options.rows // options.partitions
    frame, right = job.frame(rows, options.partitions), expected(rows)
    with measure.fresh_store(), measure.cluster(workers) as client:
        calls: dict[str, Callable[[], Run]] = {
            DATA: lambda: predict(client, frame, "data", right),
            PIPELINE: lambda: predict(client, frame, Layout(stages=workers), right),
        }
        if workers == 2:
            calls["one process, 2 threads"] = lambda: by_hand("one_process", rows, size)
            calls["GPipe of torch"] = lambda: by_hand("gpipe", rows, size)
        # They load the model; in a process that made no such call before.
        first = {name: calls[name]() for name in (PIPELINE, DATA)}
        chosen = client.run_on_scheduler(_microbatch)
        answers = measure.interleave(calls, options.rounds)
    sizes = {PIPELINE: chosen}
    return [
        [
            workers,
            name,
            ceil(size / max(1, round(size / sizes.get(name, size)))),
            *measure.beside(runs, answers[DATA]),
            *_calls(first.get(name), runs),
        ]
        for name, runs in answers.items()
    ]


def _calls(first: Run | None, runs: list[Run]) -> list[str]:
    """Seconds and CPU seconds of the first `predict` call; seconds of an equal one."""
    if first is None:
        return ["", "", ""]
    equal = measure.median([run["call"] for run in runs])
    return [f"{first['call']:.2f}", f"{first['call_cpu']:.2f}", f"{equal:.3f}"]


def _microbatch(dask_scheduler: Any) -> int:
    from dask_infer.spec.group_spec import COORDINATOR

    (group,) = dask_scheduler.plugins[COORDINATOR].table.groups.values()
    return int(group.microbatch)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", nargs="+", type=int, default=[2, 3])
    parser.add_argument("--rows", type=int, default=1152)
    parser.add_argument("--partitions", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    lines = [line for n in options.workers for line in compare(n, options)]
    print(measure.machine(), measure.table(HEADER.split(" | "), lines), sep="\n\n")


if __name__ == "__main__":
    main()
