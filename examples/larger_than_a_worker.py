"""A model that is larger than any worker's memory limit: three stages, one a worker.

Whole, every worker refuses it. Cut into layer groups it runs, and no process ever
holds all of it: the weights are written layer by layer, the client builds nothing, and
each stage reads its own tensors alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import dask.dataframe as dd
import numpy as np
import pandas as pd
import torch
from distributed import Client, LocalCluster
from safetensors.torch import save_file

import dask_infer
from dask_infer import InferError, Layout, ModelSource

#: One layer has this many squared float32 weights: 64 MiB.
WIDTH = 4096


class Layer(torch.nn.Module):
    """A residual layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add to `x` what the layer makes of it."""
        return x + torch.relu(self.linear(x))


def build(depth: int) -> torch.nn.Module:
    """Build the architecture; called where tensors take no memory."""
    layers = [Layer() for _ in range(depth)]
    return torch.nn.Sequential(
        torch.nn.Linear(8, WIDTH), *layers, torch.nn.Linear(WIDTH, 1)
    )


def write_weights(depth: int, folder: Path) -> Path:
    """Write synthetic weights, a file for each layer, and the index of the files."""
    with torch.device("meta"):
        layers = build(depth)
    files = {}
    for number, layer in enumerate(layers):
        name = f"layer-{number:02}.safetensors"
        weights = {
            f"{number}.{key}": torch.randn(tensor.shape) / WIDTH
            for key, tensor in layer.state_dict().items()
        }
        save_file(weights, folder / name)
        files.update(dict.fromkeys(weights, name))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return index


def main() -> None:
    """Be refused with the whole model, then run it in three stages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer layers and rows")
    options = parser.parse_args()
    depth, rows, limit = (10, 200, "1 GiB") if options.quick else (26, 500, "1.5 GiB")

    columns = [f"x{i}" for i in range(8)]
    values = np.random.default_rng(0).normal(size=(rows, 8)).astype("float32")
    ddf = dd.from_pandas(pd.DataFrame(values, columns=columns), npartitions=4)

    with tempfile.TemporaryDirectory() as folder:
        weights = write_weights(depth, Path(folder))
        nbytes = sum(file.stat().st_size for file in Path(folder).iterdir())
        print(f"a model of {nbytes / 2**20:.0f} MiB, workers of {limit} each")
        model = ModelSource.from_factory(build, depth, weights=str(weights))

        cluster = LocalCluster(n_workers=3, threads_per_worker=1, memory_limit=limit)
        with cluster, Client(cluster) as client:
            whole = ddf.infer.predict(model, columns=columns, output="score")
            try:
                whole.compute()
            except InferError as error:
                print(f"whole: {error}")

            layout = Layout(stages=3)
            pred = ddf.infer.predict(
                model, columns=columns, output="score", parallel=layout
            )
            print(f"in stages: mean score {pred['score'].mean().compute():.4f}")
            print(dask_infer.replicas(client)[["worker", "stage", "bytes", "rows"]])
            dask_infer.unload(client=client)


if __name__ == "__main__":
    main()
