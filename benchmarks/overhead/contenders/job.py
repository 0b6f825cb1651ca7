"""The job that every contender does, and how a contender reports its time.

A contender is a program ``<name>.py --data DIR --small DIR --out DIR``. It starts what
it needs, does the job once on the small directory, which loads libraries and models,
then once on the data under the clock, and prints a JSON object as its last line.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch

FEATURES = [f"x{number}" for number in range(32)]
WORKERS = 2
#: Every replica that was built, in any process, leaves the time here.
READY = Path(os.environ.get("BENCHMARK_READY", os.devnull))
#: Rows of one forward, from a sweep of the hand-written loop (README).
BATCH = 4096


def build() -> torch.nn.Module:
    """Model of the job, with the same weights in every process."""
    import torch
    from torch import nn

    layers = [nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(128, 1)).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    with READY.open("a") as file:
        file.write(f"{time.time()}\n")
    return model


def files(place: str) -> list[Path]:
    """Parquet files of a directory, in order."""
    return sorted(Path(place).glob("*.parquet"))


def measure(predict: Callable[[str, str], object], *packages: str) -> None:
    """Warm up, time ``predict(data, out)``, print the answer."""
    parser = argparse.ArgumentParser()
    for name in ("--data", "--small", "--out"):
        parser.add_argument(name, required=True)
    arguments = parser.parse_args()
    _do(predict, arguments.small, arguments.out)
    before = _cpu_seconds()
    start, stop = _do(predict, arguments.data, arguments.out)
    answer = {
        "seconds": stop - start,
        "cpu": _cpu_seconds() - before,
        "seconds_ready": stop - max(start, _first_ready()),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
    print(json.dumps(answer), flush=True)


def _do(
    predict: Callable[[str, str], object], data: str, out: str
) -> tuple[float, float]:
    shutil.rmtree(out, ignore_errors=True)
    Path(out).mkdir(parents=True)
    start = time.time()
    predict(data, out)
    return start, time.time()


def _cpu_seconds() -> float:
    """CPU time of this process, its children and those that have ended."""
    me = psutil.Process()
    tree = [me, *me.children(recursive=True)]
    return sum(sum(process.cpu_times()[:4]) for process in tree)


def _first_ready() -> float:
    """When the first replica of the timed job was built, be it before the job."""
    built = sorted(float(line) for line in READY.read_text().split())
    return min(built[-WORKERS:], default=0.0)
