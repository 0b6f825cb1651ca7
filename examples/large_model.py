"""A model that the client never holds: built on the workers, filled in from a file.

Each worker builds the module on the meta device, where it takes no memory, and reads
its weights from a safetensors file, which the processes of a host share.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import dask.dataframe as dd
import numpy as np
import pandas as pd
import torch
from distributed import Client, LocalCluster
from safetensors.torch import save_file

import dask_infer
from dask_infer import ModelSource


def build(width: int) -> torch.nn.Module:
    """Build the architecture; called under the meta device."""
    return torch.nn.Sequential(
        torch.nn.Linear(8, width),
        torch.nn.ReLU(),
        torch.nn.Linear(width, width),
        torch.nn.ReLU(),
        torch.nn.Linear(width, 1),
    )


def main() -> None:
    """Write the weights, predict on two workers, look at what is resident."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a model of 1 MB")
    options = parser.parse_args()
    width = 512 if options.quick else 8192

    columns = [f"x{i}" for i in range(8)]
    values = np.random.default_rng(0).normal(size=(4000, 8))
    ddf = dd.from_pandas(pd.DataFrame(values, columns=columns), npartitions=4)

    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        save_file(build(width).state_dict(), weights)
        model = ModelSource.from_factory(build, width, weights=str(weights))

        cluster = LocalCluster(n_workers=2, threads_per_worker=1)
        with cluster, Client(cluster) as client:
            pred = ddf.infer.predict(model, columns=columns, output="score")
            print(f"mean score {pred['score'].mean().compute():.4f}")
            print(dask_infer.replicas(client))


if __name__ == "__main__":
    main()
