"""Short jobs on clusters of processes, each beside what was predicted for it."""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import dask.dataframe as dd
import numpy as np
import pandas as pd
from distributed import get_worker, wait

from benchmarks import measure
from benchmarks.pipeline.model import frame
from benchmarks.recovery import main as recovery_benchmark
from benchmarks.simulate import readmes, tasks
from benchmarks.simulate.calibration import SCHEDULER, WORKER
from benchmarks.simulate.readmes import Prediction
from benchmarks.window import main as window_benchmark
from dask_infer import Layout


class Live(NamedTuple):
    """A job that was run, beside what was predicted."""

    #: If CPU were there at once, as it is for processes that sleep most of the time.
    idle: Prediction
    #: If each process had to wait for CPU as one does that wants it all the time.
    busy: Prediction
    #: How many times longer CPU took for such a process.
    slow: float


class Slowness:
    """How many times longer CPU takes than on an idle machine, while a job runs.

    A thread of the client, which only waits meanwhile, wants a core for 30 ms again and
    again. The job's own processes are among those that it waits for.
    """

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._probe, daemon=True)

    def __enter__(self) -> Slowness:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _probe(self) -> None:
        while not self.wall or not self._over.wait(0.15):
            wall, cpu = time.perf_counter(), time.thread_time()
            while time.perf_counter() - wall < 0.03:
                pass
            self.wall += time.perf_counter() - wall
            self.cpu += time.thread_time() - cpu

    @property
    def times(self) -> float:
        """Wall time over CPU time."""
        return self.wall / self.cpu


def beside(
    benchmark: str,
    case: str,
    predict: Callable[[float], float],
    run: Callable[[], float],
) -> Live:
    """Run a job; predict it for an idle machine and for this one, as it was."""
    with Slowness() as slowness:
        measured = run()
    idle, busy = (
        Prediction(benchmark, case, predict(slow), measured)
        for slow in (1.0, slowness.times)
    )
    return Live(idle, busy, slowness.times)


def sleeps(batch: np.ndarray, seconds: tuple[float, ...]) -> np.ndarray:
    """Take the time that is this worker's, and none of a core."""
    time.sleep(seconds[get_worker().benchmark_number % len(seconds)])
    return batch


def number_workers(client: Any) -> None:
    """Number the workers, so that some can be slower than others."""

    def note(number: int, dask_worker: Any) -> None:
        dask_worker.benchmark_number = number

    for number, address in enumerate(client.scheduler_info(n_workers=-1)["workers"]):
        client.run(note, number, workers=[address])


def partitions_seconds(client: Any, count: int, seconds: tuple[float, ...]) -> float:
    """Seconds of a job of so many partitions, each one call of `sleeps`."""
    # Dask fuses a read by `from_map` with the prediction, and not one of `from_pandas`.
    ddf = dd.from_map(rows, range(count), meta=rows(0))
    pred = ddf.infer.predict(
        partial(sleeps, seconds=seconds), columns="x", meta="float32", keep=False
    )
    # As in `noop`, no result travels: gathering them would be another job's work.
    start = time.perf_counter()
    result = pred.persist()
    wait(result)
    taken = time.perf_counter() - start
    assert len(result) == 4 * count
    return taken


def rows(partition: int) -> pd.DataFrame:
    """Return the four rows of a partition."""
    return pd.DataFrame({"x": np.zeros(4, "float32")})


def partitions_predicted(
    slow: float, count: int, seconds: tuple[float, ...], workers: int
) -> float:
    """The same; its own processes share the cores, and others slow all of them."""
    cores = len(os.sched_getaffinity(0))
    cluster = tasks.Cluster(workers, slow * SCHEDULER.value, slow * WORKER.value, cores)
    return tasks.run(cluster, count, lambda worker: [seconds[worker % len(seconds)]])


def live(options: argparse.Namespace) -> Iterator[Live]:
    """Run all that is asked for."""
    if "tasks" in options.live:
        with measure.fresh_store(), measure.cluster(4) as client:
            number_workers(client)
            partitions_seconds(client, 50, (0.001,))
            cases = [
                (1000, (0.0,)), (1000, (0.005,)), (400, (0.02,)), (100, (0.1,)),
                (60, (0.2, 0.4)), (60, (0.1, 0.1, 0.1, 0.5)),
            ]  # fmt: skip
            for count, seconds in cases:
                times = ", ".join(f"{1e3 * each:g}" for each in seconds)
                kind = "small tasks" if len(seconds) == 1 else "mixed speeds"
                yield beside(
                    kind, f"{count} tasks of {times} ms, 4 workers, seconds",
                    partial(partitions_predicted, count=count, seconds=seconds,
                            workers=4),
                    partial(partitions_seconds, client, count, seconds),
                )  # fmt: skip
    if "window" in options.live:
        yield from _windows(2, 64, 0.05)
    if "loss" in options.live:
        yield from _losses(80, 0.02)


def _windows(stages: int, count: int, sleep: float) -> Iterator[Live]:
    cuts = [str(n) for n in range(1, stages)]
    model = window_benchmark.uneven(stages, sleep, 0.3)
    with measure.fresh_store(), measure.cluster(stages) as client:
        ddf = frame(count, count // 8)
        for size in (1, stages, 2 * stages):
            layout = Layout(stages=cuts, microbatch=1, window=size, replicas=1)

            def run(layout: Layout = layout) -> float:
                ((runs,),) = zip(
                    *window_benchmark.steps(client, ddf, model, [layout], 1),
                    strict=True,
                )
                return count / runs[0]

            yield beside(
                "window", f"{stages} stages, window {size}, microbatches/s",
                partial(readmes.window_rate, stages, size, count, sleep), run,
            )  # fmt: skip


def _losses(count: int, sleep: float) -> Iterator[Live]:
    options = argparse.Namespace(microbatches=count, sleep=sleep)
    with (
        tempfile.TemporaryDirectory() as place,
        measure.fresh_store(),
        recovery_benchmark.workers() as client,
    ):
        job = recovery_benchmark.Job(client, Path(place), options)
        job.run(None)
        for stage in (None, 1):
            client.wait_for_workers(len(recovery_benchmark.HELD))
            client.run(recovery_benchmark._warm)
            case = "undisturbed" if stage is None else f"stage {stage} killed"
            yield beside(
                "loss", f"{case}, seconds",
                partial(_loss_seconds, stage, count, sleep), partial(_run, job, stage),
            )  # fmt: skip


def _loss_seconds(stage: int | None, count: int, sleep: float, slow: float) -> float:
    return readmes.recovery(stage, count, sleep, slow)[0]


def _run(job: Any, stage: int | None) -> float:
    return float(job.run(stage)["job"])
