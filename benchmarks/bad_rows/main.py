"""What it costs to leave bad rows out: where there are none, few, and many."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import torch

import dask_infer  # noqa: F401  (registers the accessor)
from benchmarks import measure
from dask_infer.graph.tasks import run_partition

HEADER = "hidden | on_error | bad rows | seconds | range | ratio | CPU ratio | forwards"

#: Width of the hidden layers, and rows: forwards whose cost is fixed, and by the row.
MODELS = {128: 400_000, 1024: 20_000}

#: What `on_error` is, bad rows in 10,000, and whether they lie one after the other.
CASES = {
    ("raise", "none"): (0, False),
    ("null", "none"): (0, False),
    ("quarantine", "none"): (0, False),
    ("null", "0.01 %"): (1, False),
    ("null", "1 %"): (100, False),
    ("null", "1 %, one run"): (100, True),
}

#: Columns that the model reads.
WIDTH = 32


class Picky(torch.nn.Module):
    """An MLP that refuses a batch with a NaN in it, after it has done its work."""

    forwards = 0

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(WIDTH, hidden),
            torch.nn.ReLU(),
            torch.nn.Linear(hidden, hidden),
            torch.nn.ReLU(),
            torch.nn.Linear(hidden, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return one number a row."""
        Picky.forwards += 1
        y = self.layers(x)
        if type(y) is torch.Tensor and torch.isnan(y).any():
            raise ValueError("NaN in the batch")
        return y


def frame(rows: int, bad: int, run: bool) -> pd.DataFrame:
    """Rows of which so many are bad: at random places, or one after the other."""
    random = np.random.default_rng(0)
    block = random.normal(size=(WIDTH, rows)).astype("float32")
    places = np.arange(bad) + rows // 3
    if not run:
        places = random.choice(rows, bad, replace=False)
    block[0, places] = np.nan
    return pd.DataFrame(block.T, columns=[f"c{i}" for i in range(WIDTH)], copy=False)


def predict(
    data: pd.DataFrame, model: Any, on_error: str, size: int
) -> Callable[[], Any]:
    """Return a call that predicts one partition, as a task of a worker does."""
    ddf = dd.from_pandas(data, npartitions=1)
    pred = ddf.infer.predict(model, on_error=on_error, batch_size=size, keep=False)
    return partial(run_partition, data, pred.expr._job_bytes, pred.expr.emit)


def timed(call: Callable[[], pd.DataFrame], bad: int) -> dict[str, float]:
    """Wall and processor time of one partition, and its forwards."""
    Picky.forwards = 0
    start, cpu = time.perf_counter(), time.process_time()
    result = call()
    cpu, seconds = time.process_time() - cpu, time.perf_counter() - start
    if result["prediction"].isna().sum() != bad:
        raise RuntimeError("not exactly the bad rows are missing")
    return {"seconds": seconds, "cpu": cpu, "forwards": Picky.forwards}


def compare(hidden: int, rows: int, size: int, rounds: int) -> list[list[Any]]:
    """Lines of the table for one model."""
    model = Picky(hidden)
    calls = {}
    for case, (share, run) in CASES.items():
        bad = rows * share // 10_000
        call = predict(frame(rows, bad, run), model, case[0], size)
        calls[case] = partial(timed, call, bad)
    measure.interleave(calls, 1)
    # What is compared to within a percent takes turns more often.
    clean = {case: call for case, call in calls.items() if case[1] == "none"}
    rest = {case: call for case, call in calls.items() if case not in clean}
    answers = measure.interleave(clean, 4 * rounds) | measure.interleave(rest, rounds)
    base = answers["raise", "none"]
    lines = []
    for (on_error, bad), runs in answers.items():
        seconds = [run["seconds"] for run in runs]
        lines.append(
            [
                hidden,
                f"`{on_error}`",
                bad,
                f"{measure.median(seconds):.3f}",
                measure.spread(seconds, 3),
                f"{_ratio(runs, base, 'seconds'):.3f}",
                f"{_ratio(runs, base, 'cpu'):.3f}",
                int(runs[0]["forwards"]),
            ]
        )
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    size, rounds = arguments.batch_size, arguments.rounds
    lines = []
    with measure.fresh_store(), dask.config.set({"infer.replica.cpu-threads": 1}):
        for hidden, rows in MODELS.items():
            lines += compare(hidden, rows, size, rounds)
    print(measure.machine(), measure.table(HEADER.split(" | "), lines), sep="\n\n")


def _ratio(
    runs: list[dict[str, float]], base: list[dict[str, float]], key: str
) -> float:
    """Median of the ratio to the baseline: of the same round where both took turns."""
    if len(runs) == len(base):
        pairs = zip(runs, base, strict=True)
        return statistics.median(run[key] / other[key] for run, other in pairs)
    middle = statistics.median(other[key] for other in base)
    return statistics.median(run[key] / middle for run in runs)


if __name__ == "__main__":
    main()
