"""Daft ``@daft.cls`` with a batch method, on the threads of one process.

With ``max_concurrency=2`` Daft starts two processes for every job and took twice as
long.
"""

from __future__ import annotations

import daft
import numpy as np
from job import FEATURES, build, measure

#: Fastest of 4,096, 16,384 and 65,536 rows.
BATCH = 16_384


@daft.cls(use_process=False)
class Predictor:
    """Replica of the model."""

    def __init__(self):
        self.model = build()

    @daft.method.batch(return_dtype=daft.DataType.float32(), batch_size=BATCH)
    def predict(self, *columns: daft.Series):
        """Predictions of one batch of columns."""
        import torch

        torch.set_num_threads(1)
        block = np.stack([column.to_arrow().to_numpy() for column in columns])
        with torch.inference_mode():
            return self.model(torch.from_numpy(block).T)[:, 0].numpy()


def main() -> None:
    """Time the job."""
    daft.set_runner_native()
    model = Predictor()

    def predict(data: str, out: str) -> None:
        rows = daft.read_parquet(f"{data}/*.parquet")
        column = model.predict(*(daft.col(name) for name in FEATURES))
        rows.select("id", column.alias("prediction")).write_parquet(out)

    measure(predict, "daft", "torch", "pyarrow")


if __name__ == "__main__":
    main()
