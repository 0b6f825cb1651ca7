"""A model that is larger than the memory for models, in one process without a cluster.

The weights are in a file. Whole, the model is refused. In a sweep its layer groups are
read one after the other, and each runs all rows before it makes room for the next.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

import dask_infer
from dask_infer import InferError, ModelSource

#: A layer has the square of this many weights.
WIDTH = 1024


def build(depth: int) -> torch.nn.Module:
    """Build the architecture; called where tensors take no memory."""
    layers = [
        torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Tanh())
        for _ in range(depth)
    ]
    return torch.nn.Sequential(torch.nn.Linear(8, WIDTH), *layers)


def main() -> None:
    """Be refused with the whole model, then sweep its layers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer layers and rows")
    options = parser.parse_args()
    depth, rows = (12, 400) if options.quick else (60, 4000)

    columns = [f"x{i}" for i in range(8)]
    values = np.random.default_rng(0).normal(size=(rows, 8)).astype("float32")
    ddf = dd.from_pandas(pd.DataFrame(values, columns=columns), npartitions=2)

    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "model.safetensors"
        save_file(build(depth).state_dict(), weights)
        model = ModelSource.from_factory(build, depth, weights=str(weights))
        limit = weights.stat().st_size // 2
        print(f"{2 * limit / 2**20:.0f} MiB of weights, {limit / 2**20:.0f} for models")

        def mean(vectors: torch.Tensor, frame: pd.DataFrame) -> torch.Tensor:
            return vectors.mean(1)

        request = {"columns": columns, "postprocess": mean, "meta": ("mean", "float32")}
        settings = {"infer.replica.memory-limit": limit, "scheduler": "threads"}
        with dask.config.set(settings):
            try:
                ddf.infer.predict(model, **request).compute()
            except InferError as error:
                print(f"whole: {error}")
            pred = ddf.infer.predict(model, parallel="sweep", **request)
            with dask_infer.progress():
                print(f"in a sweep: {pred['mean'].mean().compute():.4f}")
            print(dask_infer.replicas()[["stage", "bytes", "rows"]])


if __name__ == "__main__":
    main()
