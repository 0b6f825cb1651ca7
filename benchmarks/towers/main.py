"""Towers on workers of their own beside the ideal; an ensemble beside its forwards."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import torch
from torch import nn

import dask_infer
from benchmarks import measure
from dask_infer import Ensemble, Layout, Towers

ROWS = 1600
#: Replicas of the two towers on three workers.
IDEAL = {"one": 1, "three": 2}
MEMBERS, WIDTH = 5, 256


class Sleeps(nn.Module):
    """Takes its time for each row, and none of a core."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.scale = nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a number a row."""
        if type(x) is torch.Tensor:  # and no fake one, as shapes are found with
            time.sleep(self.seconds * len(x))
        return self.scale(x)[:, 0]


class One(Sleeps):
    """A name to know its replicas by."""


class Three(Sleeps):
    """A name to know its replicas by."""


MODELS = {"one": One(0.001), "three": Three(0.003)}


def towers(replicas: str) -> Towers:
    """Two towers that hold a worker each, and share the rest."""
    return Towers(
        {
            name: (
                model,
                [name],
                {
                    "resources": {"TOWER": 1},
                    "batch_size": 25,
                    "parallel": Layout(
                        replicas=IDEAL[name] if replicas == "given" else "auto"
                    ),
                },
            )
            for name, model in MODELS.items()
        }
    )


def run_towers(model: Towers, partitions: int) -> float:
    """Put all rows through both towers."""
    values = np.arange(ROWS, dtype="float32")
    frame = pd.DataFrame(dict.fromkeys(MODELS, values))
    pred = dd.from_pandas(frame, npartitions=partitions).infer.predict(
        model, output={name: f"{name} out" for name in MODELS}
    )
    seconds, found = measure.timed(pred.compute)
    assert found.notna().all(axis=None) and found.index.equals(frame.index)
    return float(seconds)


def measure_towers(rounds: int) -> str:
    """Return a table of towers on three workers."""
    lines = []
    ideal = max(ROWS * m.seconds / IDEAL[name] for name, m in MODELS.items())
    options = {"resources": {"TOWER": 1}}
    for replicas in ("given", "auto"):
        model = towers(replicas)
        with measure.cluster(3, **options):
            run_towers(model, 16)  # loads them, and shows which one is slow
            deadline = time.monotonic() + 30
            while len(_replicas()) < 3 and time.monotonic() < deadline:
                run_towers(model, 16)
            counts = _replicas().value_counts()
            found = "+".join(str(counts[type(m).__name__]) for m in MODELS.values())
            calls = {str(n): partial(run_towers, model, n) for n in (16, 2)}
            answers = measure.interleave(calls, rounds)
        for name, seconds in answers.items():
            middle = measure.median(seconds)
            lines.append(
                [name, replicas, found, f"{middle:.2f}", measure.spread(seconds),
                 f"{ideal:.2f}", f"{middle / ideal:.2f}"]
            )  # fmt: skip
    header = "partitions | replicas | found | seconds | range | ideal | ratio"
    return measure.table(header.split(" | "), lines)


def _replicas() -> Any:
    """Return the model of each replica on the workers."""
    table = dask_infer.replicas()
    assert isinstance(table, pd.DataFrame)
    return table["model"]


def measure_ensemble(rounds: int, rows: Sequence[int]) -> str:
    """Return a table of five equal modules, as an ensemble and by hand, on one core."""
    torch.manual_seed(0)
    models = [
        nn.Sequential(nn.Linear(WIDTH, 1024), nn.ReLU(), nn.Linear(1024, 10))
        for _ in range(MEMBERS)
    ]
    # Idle threads of torch spin: with two of them, whatever is beside the forwards
    # counts twice in the CPU seconds of the process.
    torch.set_num_threads(1)
    one_thread = {"scheduler": "sync", "infer.replica.cpu-threads": 1}
    with dask.config.set(one_thread):
        lines = [line for n in rows for line in _ensemble_lines(models, rounds, n)]
    header = ["rows", "", "CPU s", "range", "ratio", "beside, s"]
    return measure.table(header, lines)


def _ensemble_lines(models: list[nn.Module], rounds: int, rows: int) -> list[Any]:
    values = np.random.default_rng(0).normal(size=(rows, WIDTH)).astype("float32")
    frame = pd.DataFrame({"x": dask_infer.TensorArray.from_numpy(values)})
    ddf = dd.from_pandas(frame, npartitions=4)

    def one(model: Any) -> float:
        pred = ddf.infer.predict(model, columns="x", keep=False, batch_size=1024)
        before = time.process_time()
        pred.compute()
        return time.process_time() - before

    def ensemble() -> float:
        return one(Ensemble(models))

    def by_hand() -> float:
        before = time.process_time()
        with torch.inference_mode():
            batches = torch.from_numpy(values).split(1024)
            outputs = [torch.cat([model(b) for b in batches]) for model in models]
            torch.stack(outputs).mean(0)
        return time.process_time() - before

    calls = {
        "five forwards in a loop": by_hand,
        "five predictions": lambda: sum(map(one, models)),
        "ensemble": ensemble,
    }
    for call in calls.values():  # loads the models
        call()
    answers = measure.interleave(calls, rounds)
    # Whatever else ran made them only longer.
    base = min(answers["five forwards in a loop"])
    return [
        [f"{rows:,}", name, f"{min(seconds):.3f}", measure.spread(seconds, 3),
         f"{min(seconds) / base:.3f}", f"{min(seconds) - base:.3f}"]
        for name, seconds in answers.items()
    ]  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, nargs="+", default=[40_000, 160_000])
    parser.add_argument("--only", choices=["towers", "ensemble"])
    options = parser.parse_args()
    with measure.fresh_store():
        print(measure.machine())
        if options.only != "ensemble":
            print(measure_towers(options.rounds), end="\n\n")
        if options.only != "towers":
            print(measure_ensemble(2 * options.rounds, options.rows))


if __name__ == "__main__":
    main()
