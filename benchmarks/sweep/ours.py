"""The undivided model and the sweep, each in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import torch

import dask_infer  # noqa: F401
from benchmarks.sweep.model import BATCH, WIDTH, Measured, build, rows
from dask_infer import Layout, ModelSource


def main(kind: str, layers: int, folder: Path, count: int) -> None:
    """Run all rows of one partition."""
    values = pa.array(rows(count).ravel())
    column = pd.arrays.ArrowExtensionArray(
        pa.FixedSizeListArray.from_arrays(values, WIDTH)
    )
    ddf = dd.from_pandas(pd.DataFrame({"x": column}), npartitions=1)
    model = ModelSource.from_factory(
        build, layers, weights=str(folder / "model.safetensors.index.json")
    )
    nbytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    layout = Layout(sweep=True) if kind == "sweep" else "data"
    limit = nbytes // 3 if kind == "sweep" else None
    pred = ddf.infer.predict(
        model, columns="x", keep=False, parallel=layout, batch_size=BATCH
    )
    settings = {"infer.replica.memory-limit": limit, "infer.replica.cpu-threads": 1}
    torch.set_num_threads(1)
    first = torch.nn.Sequential(torch.nn.Linear(WIDTH, 2), torch.nn.Linear(2, 1))
    options = {"columns": "x", "parallel": Layout(sweep=True, stages=2)}
    ddf.infer.predict(first, **options).head(1)  # imports what a process imports once
    with dask.config.set(settings), Measured() as measured:
        result = pred.compute(scheduler="sync")
    print(measured.answer(np.asarray(result["prediction"].infer.to_numpy())))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
