"""Photographs as JPEG bytes in parquet, decoded while the network computes.

`preprocess=` gets the rows of a batch and returns a tensor. It runs in a thread beside
the forward, a batch or two ahead. The network is a residual one with random weights, in
place of one that you have trained.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path

import dask.dataframe as dd
import numpy as np
import pandas as pd
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from transformers import ResNetConfig, ResNetForImageClassification

import dask_infer  # noqa: F401 - registers ddf.infer

SIZE = 96


def crops(count: int) -> pd.DataFrame:
    """Random crops of the two photographs that come with scikit-learn, as JPEG."""
    random = np.random.default_rng(0)
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    rows = []
    for number in range(count):
        photograph = photographs[number % 2]
        left, top = (int(random.integers(side - 256)) for side in photograph.size)
        file = io.BytesIO()
        photograph.crop((left, top, left + 256, top + 256)).save(file, "JPEG")
        rows.append((["china", "flower"][number % 2], file.getvalue()))
    return pd.DataFrame(rows, columns=["photograph", "jpeg"])


def decode(frame: pd.DataFrame) -> torch.Tensor:
    """JPEG bytes to ``(n, 3, SIZE, SIZE)``; Pillow lets other threads run meanwhile."""
    pixels = np.empty((len(frame), SIZE, SIZE, 3), dtype="float32")
    for row, data in enumerate(frame["jpeg"]):
        image = Image.open(io.BytesIO(data)).convert("RGB").resize((SIZE, SIZE))
        pixels[row] = image
    return torch.from_numpy(pixels / 127.5 - 1).permute(0, 3, 1, 2).contiguous()


def main() -> None:
    """Write the crops, classify them, compare the classes of the two photographs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="64 crops")
    options = parser.parse_args()

    torch.manual_seed(0)
    network = ResNetForImageClassification(
        ResNetConfig(embedding_size=32, hidden_sizes=[32, 64], depths=[1, 1])
    )
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory, "crops.parquet")
        crops(64 if options.quick else 2000).to_parquet(place, row_group_size=500)
        ddf = dd.read_parquet(place, split_row_groups=True)
        logits = ddf.infer.predict(
            network, columns="jpeg", preprocess=decode, output="logits",
            meta={"logits": ("float32", (2,))}, keep=["photograph"],
        )  # fmt: skip
        result = logits.compute()
    vectors = result["logits"].infer.to_numpy()
    for name in ("china", "flower"):
        mean = vectors[result["photograph"] == name].mean(axis=0)
        print(f"{name}: {(result['photograph'] == name).sum()} crops, logits {mean}")


if __name__ == "__main__":
    main()
