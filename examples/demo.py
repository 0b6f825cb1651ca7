"""Handwritten digits, from parquet to predictions on a local cluster.

``make demo`` runs this. It writes 200,000 augmented digits as partitioned parquet,
trains a small convolutional net on digits that none of them come from, predicts every
row with one call, and says how good and how fast that was. A second run finds the
data in place.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

import dask.dataframe as dd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from distributed import Client, LocalCluster, progress
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import dask_infer  # noqa: F401 - registers ddf.infer

HERE = Path(__file__).parent / "data"
PIXELS = 64
ROWS_PER_FILE = 10_000


class DigitNet(torch.nn.Module):
    """A small convolutional net: 8 x 8 pixels to a digit and how sure it is."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.Sequential(
            torch.nn.Conv2d(1, 24, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.Conv2d(24, 48, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
            torch.nn.Flatten(),
            torch.nn.Linear(48 * 4 * 4, 96),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.3),
        )
        self.head = torch.nn.Linear(96, 10)

    def logits(self, image: torch.Tensor) -> torch.Tensor:
        """Score of each digit, of images of shape ``(n, 1, 8, 8)``."""
        return self.head(self.features(image))

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Most likely digit and its probability: two columns of the result."""
        confidence, digit = self.logits(image).softmax(dim=1).max(dim=1)
        return {"digit": digit, "confidence": confidence}


def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images and labels to learn from, then images and labels to be judged by."""
    images, labels = load_digits(return_X_y=True)
    images = images.astype("float32").reshape(-1, 1, 8, 8) / 16
    seen, held_out, seen_labels, held_out_labels = train_test_split(
        images, labels, test_size=0.4, random_state=0, stratify=labels
    )
    return (
        torch.from_numpy(seen),
        torch.from_numpy(seen_labels),
        torch.from_numpy(held_out),
        torch.from_numpy(held_out_labels),
    )


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Turn, move and smudge every image a little, each in its own way."""

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.empty(len(images)).uniform_(low, high, generator=generator)

    angle, scale = uniform(-0.2, 0.2), uniform(0.9, 1.1)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    rows = [cos, -sin, uniform(-0.2, 0.2), sin, cos, uniform(-0.2, 0.2)]
    grid = F.affine_grid(
        torch.stack(rows, dim=1).view(-1, 2, 3), list(images.shape), align_corners=False
    )
    moved = F.grid_sample(images, grid, align_corners=False)
    noisy = moved + 0.05 * torch.randn(moved.shape, generator=generator)
    return (noisy.clamp(0, 1) * 16).round() / 16


def train(images: torch.Tensor, labels: torch.Tensor, epochs: int = 20) -> DigitNet:
    """Fit the net; a few seconds on one core, and no faster on more."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = DigitNet()
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for batch in order.split(128):
            loss = F.cross_entropy(
                model.logits(augment(images[batch], generator)), labels[batch]
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model


def write(rows: int, images: torch.Tensor, labels: torch.Tensor) -> Path:
    """Write `rows` augmented digits as parquet, unless an earlier run has."""
    place = HERE / f"digits-{rows}"
    if place.exists():
        return place
    # Written aside and renamed, so that a broken-off run leaves nothing half done.
    draft = place.with_name(place.name + ".draft")
    draft.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(2)
    for part, start in enumerate(range(0, rows, ROWS_PER_FILE)):
        ids = torch.arange(start, min(start + ROWS_PER_FILE, rows))
        source = ids % len(images)
        pixels = augment(images[source], generator)
        table = table_of(ids.numpy(), labels[source].numpy(), pixels.numpy())
        pq.write_table(table, draft / f"part.{part:04d}.parquet")
    draft.rename(place)
    return place


def table_of(ids: np.ndarray, labels: np.ndarray, pixels: np.ndarray) -> pa.Table:
    """One file's rows; an image is a list of 64 numbers."""
    flat = pa.array(pixels.reshape(-1))
    image = pa.FixedSizeListArray.from_arrays(flat, PIXELS)
    return pa.table({"id": ids, "label": labels, "image": image})


def predict(model: DigitNet, source: Path, target: Path) -> float:
    """Predict every row of `source` into `target`; return the seconds it took."""
    begin = time.perf_counter()
    ddf = dd.read_parquet(source)
    pred = ddf.infer.predict(
        model, columns="image", shapes={"image": (1, 8, 8)}, keep=["id", "label"]
    )
    job = pred.to_parquet(target, compute=False, overwrite=True).persist()
    progress(job)
    job.compute()
    return time.perf_counter() - begin


def main() -> None:
    """Make the data, the model and the cluster; predict; judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--quick", action="store_true", help="20,000 rows")
    parser.add_argument("--stay", action="store_true", help="keep the dashboard open")
    options = parser.parse_args()
    rows = 20_000 if options.quick else options.rows

    seen, seen_labels, held_out, held_out_labels = digits()
    source = write(rows, held_out, held_out_labels)
    print(f"data        {source} ({rows:,} rows)")

    begin = time.perf_counter()
    model = train(seen, seen_labels)
    print(f"model       trained in {time.perf_counter() - begin:.1f} s")

    # A busy machine makes workers slow to leave, which is no news to a user.
    quiet = LocalCluster(silence_logs=logging.ERROR)
    with quiet as cluster, Client(cluster) as client:
        print(f"dashboard   {client.dashboard_link}")
        target = HERE / f"predictions-{rows}"
        seconds = predict(model, source, target)
        result = dd.read_parquet(target)
        accuracy = (result["digit"] == result["label"]).mean().compute()
        print()
        print(f"accuracy    {accuracy:.1%} on digits that training never saw")
        print(f"speed       {rows / seconds:,.0f} rows/s ({seconds:.1f} s)")
        print(f"dashboard   {client.dashboard_link}")
        print(f"result      {target}")
        if options.stay:
            input("press Enter to leave ")


if __name__ == "__main__":
    main()
