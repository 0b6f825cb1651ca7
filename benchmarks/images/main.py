"""Decoding and computing at once, against the one after the other.

One partition at a time goes through a small residual network on one torch thread; the
decoder has the other core. Without overlap a job takes the sum of both.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import torch
from transformers import ResNetConfig, ResNetForImageClassification

from benchmarks import measure
from examples.images import crops, decode

HEADER = "what | s | range"


def job(ddf: Any, network: torch.nn.Module, ahead: int) -> float:
    """Seconds from bytes to logits."""
    pred = ddf.infer.predict(
        network, columns="jpeg", preprocess=decode, output="logits", keep=False,
        batch_size=16, meta={"logits": ("float32", (2,))},
    )  # fmt: skip
    with dask.config.set({"infer.batch.prefetch": ahead}):
        return measure.timed(pred.compute)[0]


def decode_all(frame: pd.DataFrame) -> float:
    """Seconds of decoding alone."""
    starts = np.arange(0, len(frame), 16)
    return measure.timed(lambda: [decode(frame[i : i + 16]) for i in starts])[0]


def compute_all(network: torch.nn.Module, pixels: torch.Tensor) -> float:
    """Seconds of the network alone."""
    with torch.inference_mode():
        return measure.timed(lambda: [network(b) for b in pixels.split(16)])[0]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--crops", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    measure.confine(2)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=24, hidden_sizes=[24, 48], depths=[1, 1])
    network = ResNetForImageClassification(config).eval()
    frame = crops(arguments.crops)
    with dask.config.set({"dataframe.convert-string": False}):
        ddf = dd.from_pandas(frame, npartitions=2)
    settings = {"scheduler": "sync", "infer.replica.cpu-threads": 1}
    with measure.fresh_store(), dask.config.set(settings):
        job(ddf, network, 2)
        runs = measure.interleave(
            {
                "decode alone": partial(decode_all, frame),
                "forward alone": partial(compute_all, network, decode(frame)),
                "one after the other (prefetch 0)": partial(job, ddf, network, 0),
                "overlapped (prefetch 2)": partial(job, ddf, network, 2),
            },
            arguments.rounds,
        )
    rows = [[n, f"{measure.median(s):.2f}", measure.spread(s)] for n, s in runs.items()]
    print(measure.machine(), measure.table(HEADER.split(" | "), rows), sep="\n\n")


if __name__ == "__main__":
    main()
