"""Throughput and memory of a pipeline, by its window and by its microbatches."""

from __future__ import annotations

import argparse
import random
import threading
import time
from typing import Any

import psutil
import torch
from torch import nn

import dask_infer
from benchmarks import measure
from benchmarks.pipeline.model import build, frame
from dask_infer import Layout

HEADER = "stages | window | microbatches/s | range | of 1/b | predicted | MB over idle"
ROWS_HEADER = "rows a microbatch | rows/s | range | of the best | MB over idle"

#: Numbers that a microbatch of one row is between two stages: 8 MB.
NUMBERS = 2**21


class Uneven(nn.Module):
    """A layer that sleeps for about some time, and hands on what is large."""

    def __init__(self, seconds: float, jitter: float, size: int) -> None:
        super().__init__()
        self.seconds, self.jitter, self.size = seconds, jitter, size
        self.scale = nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return as many numbers a row as asked for."""
        if type(x) is torch.Tensor:  # and no fake one, as shapes are found with
            time.sleep(self.seconds * max(0.1, random.gauss(1, self.jitter)))
        rows = x.float().mean(1, keepdim=True)
        return self.scale(rows).expand(-1, self.size).contiguous()


def uneven(stages: int, seconds: float, jitter: float) -> nn.Module:
    """Return a model of as many uneven layers."""
    sizes = [NUMBERS] * (stages - 1) + [1]
    return nn.Sequential(*(Uneven(seconds, jitter, size) for size in sizes))


class Watch:
    """Peak of a worker's resident memory, looked at every few milliseconds."""

    def __init__(self) -> None:
        self.start = self.peak = measure.settled_rss()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        process = psutil.Process()
        while not self._over.wait(0.005):
            self.peak = max(self.peak, process.memory_info().rss)

    def stop(self) -> int:
        """Return the bytes above the start."""
        self._over.set()
        self._thread.join()
        return self.peak - self.start


def _watch(dask_worker: Any) -> None:
    dask_worker.benchmark_watch = Watch()


def _watched(dask_worker: Any) -> int:
    peak: int = dask_worker.benchmark_watch.stop()
    return peak


def run(client: Any, ddf: Any, model: Any, layout: Layout) -> tuple[float, int]:
    """Put all rows through; return the seconds, and bytes on all workers over idle."""
    pred = ddf.infer.predict(model, columns="ids", keep=False, parallel=layout)
    client.run(_watch)
    seconds, result = measure.timed(pred.compute)
    peak = sum(client.run(_watched).values())
    assert result["prediction"].notna().all() and len(result) == len(ddf)
    return seconds, peak


def steps(
    client: Any, ddf: Any, model: Any, layouts: list[Layout], rounds: int
) -> list[list[tuple[float, int]]]:
    """Run each layout in each round; it is loaded anew each time, and that untimed."""

    def call(layout: Layout) -> tuple[float, int]:
        dask_infer.unload(client=client)
        head = ddf.partitions[[0]]
        head.infer.predict(model, columns="ids", keep=False, parallel=layout).compute()
        return run(client, ddf, model, layout)

    calls = {
        n: (lambda layout=layout: call(layout)) for n, layout in enumerate(layouts)
    }
    return list(measure.interleave(calls, rounds).values())


def windows(options: argparse.Namespace, stages: int) -> list[list[Any]]:
    """Lines of the table for windows of 1 to four times the stages."""
    sizes = sorted({1, *range(stages, 4 * stages + 1, stages)})
    sleep, jitter = options.sleep, options.jitter
    cuts = [str(n) for n in range(1, stages)]
    layouts = [
        Layout(stages=cuts, microbatch=1, window=size, replicas=1) for size in sizes
    ]
    microbatches = options.microbatches
    with measure.fresh_store(), measure.cluster(stages) as client:
        ddf = frame(microbatches, microbatches // 8)
        model = uneven(stages, sleep, jitter)
        answers = steps(client, ddf, model, layouts, options.rounds)
    lines = []
    for size, runs in zip(sizes, answers, strict=True):
        rates = [microbatches / seconds for seconds, _ in runs]
        middle, peak = measure.median(rates), measure.median([p for _, p in runs])
        lines.append(
            [stages, size, f"{middle:.1f}", measure.spread(rates, 1),
             f"{middle * sleep:.2f}", f"{min(1, size / stages):.2f}",
             f"{peak / 1e6:.0f}"]
        )  # fmt: skip
    return lines


def microbatches(options: argparse.Namespace) -> list[list[Any]]:
    """Lines of the table for microbatches of 1 to 64 rows."""
    sizes = [2**n for n in range(7)]
    layouts = [Layout(stages=2, microbatch=size, replicas=1) for size in sizes]
    rows = options.rows
    with measure.fresh_store(), measure.cluster(2) as client:
        ddf = frame(rows, rows // 64)
        answers = steps(client, ddf, build(4, 256), layouts, options.rounds)
    middles = [measure.median([rows / s for s, _ in runs]) for runs in answers]
    lines = []
    for size, runs, middle in zip(sizes, answers, middles, strict=True):
        rates = [rows / seconds for seconds, _ in runs]
        peak = measure.median([p for _, p in runs])
        lines.append(
            [size, f"{middle:.0f}", measure.spread(rates, 0),
             f"{middle / max(middles):.2f}", f"{peak / 1e6:.0f}"]
        )  # fmt: skip
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--microbatches", type=int, default=64)
    parser.add_argument("--sleep", type=float, default=0.05)
    parser.add_argument("--jitter", type=float, default=0.3)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    lines = [line for stages in options.stages for line in windows(options, stages)]
    print(measure.machine(), measure.table(HEADER.split(" | "), lines), sep="\n\n")
    print()
    print(measure.table(ROWS_HEADER.split(" | "), microbatches(options)))


if __name__ == "__main__":
    main()
