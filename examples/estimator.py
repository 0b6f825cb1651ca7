"""A scikit-learn pipeline over many rows: classes, and how sure it is of them."""

from __future__ import annotations

import argparse

import dask.dataframe as dd
import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import dask_infer  # noqa: F401 - registers ddf.infer


def measurements(rows: int, seed: int) -> pd.DataFrame:
    """Two features and the class that they tell of, with some noise."""
    random = np.random.default_rng(seed)
    frame = pd.DataFrame(
        random.normal(5, 2, size=(rows, 2)), columns=["width", "length"]
    )
    noise = random.normal(0, 0.5, size=rows)
    return frame.assign(large=frame["width"] + frame["length"] + noise > 10)


def main() -> None:
    """Fit on a little, predict a lot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="10,000 rows")
    options = parser.parse_args()

    known = measurements(1000, seed=0)
    features = ["width", "length"]
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    pipeline.fit(known[features], known["large"])

    rows = measurements(10_000 if options.quick else 1_000_000, seed=1)
    ddf = dd.from_pandas(rows, npartitions=8)
    pred = ddf.infer.predict(pipeline, columns=features, output="predicted")
    sure = pred.infer.predict(
        pipeline, columns=features, method="predict_proba", output=["no", "yes"]
    )
    correct = (sure["predicted"] == sure["large"]).mean()
    print(f"accuracy {correct.compute():.1%} on {len(rows):,} rows")
    print(sure.head())


if __name__ == "__main__":
    main()
