"""Texts of lognormal length, in parquet files that differ in their lengths, too."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.measure import DATA

FILES = 12
TEXT = (
    "a river of light ran under the old bridge while nobody in the town was looking "
    "and so it went on for years until two engineers measured its quiet current"
)
WORDS = TEXT.split()


def write(texts: int, seed: int = 0) -> Path:
    """Write so many texts once, and return their directory."""
    place = DATA / f"skewed-text-{texts}-{seed}"
    complete = place.with_suffix(".complete")
    if complete.exists():
        return place
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    random = np.random.default_rng(seed)
    counts = random.lognormal(2.9, 0.9, texts).astype(int).clip(1, 250)
    rows = [" ".join(random.choice(WORDS, count)) for count in counts]
    frame = pd.DataFrame({"id": range(texts), "text": rows})
    for number, part in enumerate(np.array_split(np.arange(texts), FILES)):
        frame.iloc[part].to_parquet(place / f"part-{number:03}.parquet", index=False)
    complete.touch()
    return place
