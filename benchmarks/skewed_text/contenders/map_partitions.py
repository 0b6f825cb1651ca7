"""Dask ``map_partitions``, what people write; one model a worker."""

from __future__ import annotations

import functools

import dask.dataframe as dd
import pyarrow as pa
from distributed import Client, LocalCluster
from job import WORKERS, Embedder, measure, options


@functools.cache
def embedder(directory):
    """Model of this process."""
    return Embedder(directory)


def predict_partition(frame, directory):
    """Vectors of one partition, in batches of rows as they come."""
    vectors = embedder(directory).embed_all(frame["text"].tolist())
    return frame[["id"]].assign(vector=list(vectors))


def main() -> None:
    """Start a cluster and time the job."""
    arguments = options()
    schema = pa.schema({"id": pa.int64(), "vector": pa.list_(pa.float32())})

    def predict(data: str, out: str) -> None:
        result = dd.read_parquet(data).map_partitions(
            predict_partition, arguments.model, meta={"id": "int64", "vector": object}
        )
        result.to_parquet(out, write_index=False, schema=schema)

    with (
        LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, dashboard_address=":0"
        ) as cluster,
        Client(cluster),
    ):
        measure(predict, arguments, "dask", "torch", "transformers")


if __name__ == "__main__":
    main()
