"""The rows of the job: 32 float32 features, an id and a text, in parquet files."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.overhead.contenders.job import FEATURES

FILES = 16
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog"]


def write(place: Path, rows: int, files: int = FILES) -> Path:
    """Write the rows once; a directory that is complete is left alone."""
    complete = place.with_suffix(".complete")
    if complete.exists():
        return place
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    bounds = np.linspace(0, rows, files + 1).astype(int)
    for number, (start, stop) in enumerate(pairwise(bounds)):
        pq.write_table(_rows(start, stop), place / f"part-{number:03}.parquet")
    complete.touch()
    return place


def _rows(start: int, stop: int) -> pa.Table:
    generator = np.random.default_rng(start)
    features = generator.standard_normal((len(FEATURES), stop - start), np.float32)
    chosen = generator.integers(0, len(WORDS), (4, stop - start))
    words = [pa.array(WORDS).take(pa.array(row)) for row in chosen]
    note = pc.binary_join_element_wise(*words, " ")
    columns = {"id": np.arange(start, stop), "note": note}
    columns |= dict(zip(FEATURES, features, strict=True))
    return pa.table(columns)
