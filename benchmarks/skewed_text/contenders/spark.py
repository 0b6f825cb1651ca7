"""Spark ``predict_batch_udf`` on ``local[2]``; Python workers are kept between jobs."""

from __future__ import annotations

from job import BATCH, WORKERS, Embedder, measure, options
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import SparkSession
from pyspark.sql.types import ArrayType, FloatType


def main() -> None:
    """Start Spark and time the job."""
    arguments = options()
    directory = arguments.model

    def make_predict():
        embedder = Embedder(directory)
        return lambda texts: embedder.embed([str(text) for text in texts])

    session = (
        SparkSession.builder.master(f"local[{WORKERS}]")
        .config("spark.driver.memory", "4g")
        .config("spark.ui.enabled", "false")
        .getOrCreate()
    )
    model = predict_batch_udf(
        make_predict, return_type=ArrayType(FloatType()), batch_size=BATCH
    )

    def predict(data: str, out: str) -> None:
        rows = session.read.parquet(data)
        column = model("text").alias("vector")
        rows.select("id", column).write.mode("overwrite").parquet(out)

    measure(predict, arguments, "pyspark", "torch", "transformers")
    session.stop()


if __name__ == "__main__":
    main()
