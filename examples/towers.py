"""An image and a table in one prediction: two towers, and a head that reads both.

The digits that come with scikit-learn are images of 8 x 8 grey values. One tower is a
small convolutional network that reads the image; the other one an estimator that reads
a table of what was measured on it: the ink in each row and column. The head weighs the
two opinions. Then five estimators vote.
"""

from __future__ import annotations

import argparse

import dask.dataframe as dd
import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from dask_infer import Ensemble, TensorArray, Towers

MEASURED = [f"{line}{place}" for line in ("row", "column") for place in range(8)]


def digits() -> pd.DataFrame:
    """Images, the ink in each of their rows and columns, and the digit."""
    data = load_digits()
    images = (data.images / 16).astype("float32")
    ink = np.concatenate([images.sum(2), images.sum(1)], axis=1)
    frame = pd.DataFrame(ink, columns=MEASURED)
    frame["image"] = TensorArray.from_numpy(images[:, None])
    frame["digit"] = data.target
    return frame


class Convolutions(torch.nn.Sequential):
    """Grey values to a score for each digit."""

    def __init__(self) -> None:
        super().__init__(
            torch.nn.Conv2d(1, 16, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
            torch.nn.Flatten(),
            torch.nn.Linear(256, 10),
        )


class Weighed(torch.nn.Module):
    """Weighs the opinions of both towers, the image's as probabilities."""

    def forward(self, image: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """Return the digit of each row."""
        return (image.softmax(1) * 0.8 + table * 0.2).argmax(1)


def trained(frame: pd.DataFrame, steps: int) -> Convolutions:
    """Fit the network to some of the images."""
    torch.manual_seed(0)
    model = Convolutions()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    images = torch.tensor(np.stack(frame["image"].to_numpy()))
    target = torch.tensor(frame["digit"].to_numpy(copy=True))
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), target).backward()
        optimizer.step()
    return model


def main() -> None:
    """Fit on half of the digits, predict the other half."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="train for less long")
    options = parser.parse_args()

    frame = digits()
    known, rows = frame[::2], frame[1::2].reset_index(drop=True)
    network = trained(known, steps=20 if options.quick else 80)
    forest = RandomForestClassifier(random_state=0).fit(known[MEASURED], known["digit"])
    ddf = dd.from_pandas(rows, npartitions=4)

    towers = Towers(
        {
            "image": (network, "image", {"batch_size": 64}),
            "table": (forest, MEASURED, {"method": "predict_proba"}),
        },
        head=Weighed(),
    )
    pred = ddf.infer.predict(towers, output="read", keep=["digit"])
    print(f"towers and head: {(pred['read'] == pred['digit']).mean().compute():.1%}")
    print(pred.head(3))

    voters = [
        RandomForestClassifier(random_state=0),
        GaussianNB(),
        *(
            make_pipeline(StandardScaler(), model)
            for model in (LogisticRegression(), SVC(), KNeighborsClassifier())
        ),
    ]
    for voter in voters:
        voter.fit(known[MEASURED], known["digit"])
    votes = ddf.infer.predict(
        Ensemble(voters, combine="vote"), columns=MEASURED, output="read"
    )
    print(f"five that vote: {(votes['read'] == votes['digit']).mean().compute():.1%}")


if __name__ == "__main__":
    main()
