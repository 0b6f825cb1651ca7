"""An ONNX file over the rows of a dataframe, with ONNX Runtime."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import dask.dataframe as dd
import numpy as np
import pandas as pd
from skl2onnx import to_onnx
from sklearn.ensemble import RandomForestRegressor

import dask_infer  # noqa: F401 - registers ddf.infer


def main() -> None:
    """Fit a forest, write it as ONNX, predict with the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1,000 rows")
    options = parser.parse_args()

    random = np.random.default_rng(0)
    features = random.normal(size=(500, 3)).astype("float32")
    target = features[:, 0] - features[:, 1] ** 2
    forest = RandomForestRegressor(20, random_state=0).fit(features, target)

    rows = 1000 if options.quick else 200_000
    values = random.normal(size=(rows, 3)).astype("float32")
    ddf = dd.from_pandas(pd.DataFrame(values, columns=["a", "b", "c"]), npartitions=4)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "forest.onnx"
        path.write_bytes(to_onnx(forest, features[:1]).SerializeToString())
        pred = ddf.infer.predict(path, columns=["a", "b", "c"]).compute()

    error = pred["prediction"] - (pred["a"] - pred["b"] ** 2)
    print(f"{rows:,} rows, mean absolute error {error.abs().mean():.3f}")


if __name__ == "__main__":
    main()
