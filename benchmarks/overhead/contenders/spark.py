"""Spark ``predict_batch_udf`` on ``local[2]``; Python workers are kept between jobs."""

from __future__ import annotations

from job import FEATURES, WORKERS, build, measure
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import SparkSession
from pyspark.sql.functions import struct
from pyspark.sql.types import FloatType

#: Fastest of 4,096, 16,384 and 65,536 rows.
BATCH = 65_536


def make_predict():
    """Load the model in a Python worker, once."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    model = build()

    def predict(inputs):
        block = torch.from_numpy(np.array(inputs, np.float32))
        with torch.inference_mode():
            return model(block)[:, 0].numpy()

    return predict


def main() -> None:
    """Start Spark and time the job."""
    session = (
        SparkSession.builder.master(f"local[{WORKERS}]")
        .config("spark.driver.memory", "4g")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", BATCH)
        .getOrCreate()
    )
    model = predict_batch_udf(
        make_predict,
        return_type=FloatType(),
        batch_size=BATCH,
        input_tensor_shapes=[[len(FEATURES)]],
    )

    def predict(data: str, out: str) -> None:
        rows = session.read.parquet(data)
        column = model(struct(*FEATURES)).alias("prediction")
        rows.select("id", column).write.mode("overwrite").parquet(out)

    measure(predict, "pyspark", "torch", "pyarrow")
    session.stop()


if __name__ == "__main__":
    main()
