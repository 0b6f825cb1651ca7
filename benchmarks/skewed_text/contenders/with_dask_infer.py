"""``ddf.infer.predict`` with its defaults, on two one-thread workers."""

from __future__ import annotations

import sys

import dask.dataframe as dd
import torch
from distributed import Client, LocalCluster
from job import WORKERS, measure, options

import dask_infer


def width(output, frame, inputs):
    """Length that each row of a batch was padded to."""
    rows, longest = inputs["input_ids"].shape
    return torch.full((rows,), longest)


def main() -> None:
    """Start a cluster and time the job."""
    arguments = options()

    def predict(data: str, out: str) -> None:
        rows = dd.read_parquet(data)
        result = rows.infer.predict(arguments.model, columns="text", output="vector")
        result[["id", "vector"]].to_parquet(out, write_index=False)

    def padded() -> int:
        widths = dd.read_parquet(arguments.data).infer.predict(
            arguments.model, columns="text", postprocess=width, output="width",
            meta={"width": "int64"},
        )  # fmt: skip
        return int(widths["width"].sum().compute())

    with (
        LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, dashboard_address=":0"
        ) as cluster,
        Client(cluster),
    ):
        measure(predict, arguments, "dask", "torch", "transformers", padded=padded)
        print(dask_infer.replicas().attrs["batches"], flush=True, file=sys.stderr)


if __name__ == "__main__":
    main()
