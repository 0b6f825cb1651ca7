"""Daft ``@daft.cls`` with a batch method, in two processes."""

from __future__ import annotations

import daft
from job import BATCH, WORKERS, Embedder, measure, options


@daft.cls(max_concurrency=WORKERS)
class Predictor:
    """Replica of the model."""

    def __init__(self, directory: str) -> None:
        self.embedder = Embedder(directory)

    @daft.method.batch(
        return_dtype=daft.DataType.list(daft.DataType.float32()), batch_size=BATCH
    )
    def predict(self, text: daft.Series):
        """Vectors of one batch of texts."""
        return self.embedder.embed(text.to_pylist()).tolist()


def main() -> None:
    """Time the job."""
    arguments = options()
    daft.set_runner_native()
    model = Predictor(arguments.model)

    def predict(data: str, out: str) -> None:
        rows = daft.read_parquet(f"{data}/*.parquet")
        column = model.predict(daft.col("text")).alias("vector")
        rows.select("id", column).write_parquet(out)

    measure(predict, arguments, "daft", "torch", "transformers")


if __name__ == "__main__":
    main()
