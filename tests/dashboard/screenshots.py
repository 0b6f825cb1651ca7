"""Pictures of the page for the documentation: ``make screenshots``."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import dask.dataframe as dd
import numpy as np
import pandas as pd
import torch
from distributed import Client, LocalCluster, wait
from PIL import Image

import dask_infer
from tests.dashboard.browser import browser

ROWS = 500_000


class Scorer(torch.nn.Module):
    """A model that a worker is busy with."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, width)
        self.layers = torch.nn.Sequential(
            *(torch.nn.Linear(width, width) for _ in range(6))
        )
        self.last = torch.nn.Linear(width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.layers(torch.relu(self.first(x)))))


def fails_now_and_then(frame: pd.DataFrame) -> pd.DataFrame:
    """Refuse some rows."""
    if (frame["a"] > 3.9).any():
        raise ValueError("a is out of range")
    return frame


async def pictures(base: str, folder: Path) -> None:
    """Wait until both jobs are to be seen, then take them."""
    async with browser() as page:
        await page.open(f"{base}/infer", 1300, 1180)
        while len((await page.source("infer_rows"))["model"]) < 2:
            await asyncio.sleep(0.2)
        await asyncio.sleep(8)
        await page.screenshot(folder / "infer-page.png")
        await page.open(f"{base}/infer", 800, 1180)
        await asyncio.sleep(4)
        await page.screenshot(folder / "infer-page-narrow.png")
        await page.open(f"{base}/individual-infer-time", 700, 320)
        await asyncio.sleep(4)
        await page.screenshot(folder / "infer-time.png")


def main(folder: Path) -> None:
    """Run two jobs and take pictures meanwhile."""
    folder.mkdir(exist_ok=True)
    numbers = np.random.default_rng(0).normal(size=(ROWS, 4)).astype("float32")
    ddf = dd.from_pandas(pd.DataFrame(numbers, columns=list("abcd")), npartitions=100)
    cluster = LocalCluster(
        n_workers=4, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    )
    with cluster, Client(cluster) as client:
        services = client.scheduler_info()["services"]
        one = ddf.infer.predict(
            Scorer(128),
            columns=list("abcd"),
            preprocess=fails_now_and_then,
            on_error="null",
            batch_size=1000,
            meta="float32",
        )
        two = ddf.infer.predict(
            Scorer(), columns=list("abcd"), parallel=dask_infer.Layout(stages=2)
        )
        # The first partitions of one model, then both at once.
        first = two.partitions[:30].persist()
        wait(first)
        running = one.persist(), two.partitions[30:].persist()
        asyncio.run(pictures(f"http://127.0.0.1:{services['dashboard']}", folder))
        client.cancel(list(running))
    for picture in folder.glob("infer-*.png"):
        Image.open(picture).convert("RGB").quantize(200).save(picture, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
