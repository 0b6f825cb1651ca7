"""``ddf.infer.predict`` with its defaults; the read needs no list of columns."""

from __future__ import annotations

import dask.dataframe as dd
from distributed import Client, LocalCluster
from job import FEATURES, WORKERS, build, measure

import dask_infer  # noqa: F401  (registers the accessor)


def main() -> None:
    """Start a cluster and time the job."""
    model = build()

    def predict(data: str, out: str) -> None:
        rows = dd.read_parquet(data)
        result = rows.infer.predict(model, columns=FEATURES)
        result[["id", "prediction"]].to_parquet(out, write_index=False)

    with (
        LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, dashboard_address=":0"
        ) as cluster,
        Client(cluster),
    ):
        measure(predict, "dask", "torch", "pyarrow")


if __name__ == "__main__":
    main()
