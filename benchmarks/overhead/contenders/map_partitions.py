"""Dask ``map_partitions`` with the model as an argument, what people write today."""

from __future__ import annotations

import dask.dataframe as dd
from distributed import Client, LocalCluster
from job import BATCH, FEATURES, WORKERS, build, measure


def predict_partition(frame, model):
    """Predictions of one partition, in batches."""
    import torch

    inputs = torch.tensor(frame[FEATURES].to_numpy())
    with torch.inference_mode():
        outputs = torch.cat([model(batch) for batch in inputs.split(BATCH)])
    return frame[["id"]].assign(prediction=outputs.numpy()[:, 0])


def main() -> None:
    """Start a cluster and time the job."""
    model = build()

    def predict(data: str, out: str) -> None:
        rows = dd.read_parquet(data, columns=["id", *FEATURES])
        meta = {"id": "int64", "prediction": "float32"}
        result = rows.map_partitions(predict_partition, model, meta=meta)
        result.to_parquet(out, write_index=False)

    with (
        LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, dashboard_address=":0"
        ) as cluster,
        Client(cluster),
    ):
        measure(predict, "dask", "torch", "pyarrow")


if __name__ == "__main__":
    main()
