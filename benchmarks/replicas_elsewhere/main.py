"""How busy partitions keep the replicas of a group, by microbatches a partition."""

from __future__ import annotations

import argparse
import time
from math import ceil
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import torch
from torch import nn

import dask_infer
from benchmarks import measure
from dask_infer import Layout

HEADER = "partitions | microbatches each | seconds | range | ideal | ratio | replicas"

#: Partitions, and microbatches in each.
CASES = [(1, 8), (3, 4), (4, 1), (4, 4), (8, 1), (16, 2)]
ROWS = 20


class Sleeps(nn.Module):
    """Takes its time, and none of a core."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.scale = nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a number a row."""
        if type(x) is torch.Tensor:  # and no fake one, as shapes are found with
            time.sleep(self.seconds)
        return self.scale(x)


def run(client: Any, model: nn.Module, case: tuple[int, int]) -> tuple[float, Any]:
    """Put all rows through; return the seconds, and the rows of each replica."""
    partitions, each = case
    frame = pd.DataFrame({"x": np.arange(partitions * each * ROWS, dtype="float32")})
    ddf = dd.from_pandas(frame, npartitions=partitions)
    layout = Layout(replicas=len(client.scheduler_info(n_workers=-1)["workers"]),
                    microbatch=ROWS)  # fmt: skip
    pred = ddf.infer.predict(model, keep=False, parallel=layout)
    before = _rows()
    seconds, result = measure.timed(pred.compute)
    assert result["prediction"].notna().all() and len(result) == len(frame)
    return seconds, sorted(_rows().sub(before, fill_value=0).astype(int))


def _rows() -> Any:
    table = dask_infer.replicas()
    assert isinstance(table, pd.DataFrame)
    return table.set_index("worker").rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    model, lines = Sleeps(options.seconds), []
    with measure.fresh_store(), measure.cluster(options.workers) as client:
        run(client, model, (options.workers, 2))  # loads the first replica
        while len(_rows()) < options.workers:
            time.sleep(0.1)
        calls = {case: (lambda case=case: run(client, model, case)) for case in CASES}
        named = {str(case): call for case, call in calls.items()}
        answers = measure.interleave(named, options.rounds)
    for case in CASES:
        runs = answers[str(case)]
        seconds = [taken for taken, _ in runs]
        ideal = ceil(case[0] * case[1] / options.workers) * options.seconds
        middle = measure.median(seconds)
        worst = max((rows for _, rows in runs), key=lambda rows: rows[-1])
        lines.append(
            [case[0], case[1], f"{middle:.2f}", measure.spread(seconds), f"{ideal:.2f}",
             f"{middle / ideal:.2f}", " ".join(str(rows // ROWS) for rows in worst)]
        )  # fmt: skip
    print(measure.machine(), measure.table(HEADER.split(" | "), lines), sep="\n\n")


if __name__ == "__main__":
    main()
