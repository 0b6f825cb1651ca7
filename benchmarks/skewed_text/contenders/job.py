"""The job that every contender does: mean-pooled embeddings of texts, to parquet.

A contender is a program ``<name>.py --data DIR --small DIR --out DIR --model DIR``. It
does the job on the small directory, which loads libraries and models, then again under
the clock, which shows what it starts anew with each job, then once on the data under
the clock, and prints a JSON object as its last line.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import psutil

#: Rows of one forward in every recipe: the default of sentence-transformers.
BATCH = 32
WORKERS = 2


class Embedder:
    """Model and tokenizer as a user of transformers writes it."""

    def __init__(self, directory: str, threads: int = 1) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        torch.set_num_threads(threads)
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.model = AutoModel.from_pretrained(directory).eval()
        #: Tokens that went through the model, padding included.
        self.padded = 0

    def embed(self, texts: list[str]):
        """Vectors of the texts of one batch, float32."""
        import torch

        with torch.inference_mode():
            tokens = self.tokenizer(
                texts, padding=True, truncation=True, max_length=256,
                return_tensors="pt",
            )  # fmt: skip
            self.padded += tokens["input_ids"].numel()
            hidden = self.model(**tokens).last_hidden_state
            mask = tokens["attention_mask"][..., None].float()
            mean = (hidden * mask).sum(1) / mask.sum(1)
            return torch.nn.functional.normalize(mean).numpy()

    def embed_all(self, texts: list[str]):
        """Vectors of any number of texts, in batches of `BATCH`."""
        import numpy as np

        starts = range(0, len(texts), BATCH)
        return np.concatenate([self.embed(texts[i : i + BATCH]) for i in starts])


def options() -> argparse.Namespace:
    """What a contender is called with."""
    parser = argparse.ArgumentParser()
    for name in ("--data", "--small", "--out", "--model"):
        parser.add_argument(name, required=True)
    return parser.parse_args()


def measure(
    predict: Callable[[str, str], object],
    arguments: argparse.Namespace,
    *packages: str,
    padded: Callable[[], int] | None = None,
) -> None:
    """Warm up, time ``predict(data, out)``, print the answer.

    Parameters
    ----------
    padded
        Tells the padded tokens of the last job, where anybody can.
    """
    _do(predict, arguments.small, arguments.out)
    small = _do(predict, arguments.small, arguments.out)
    job = _do(predict, arguments.data, arguments.out)
    answer = {
        "seconds": job[0],
        "cpu": job[1],
        "small_seconds": small[0],
        "small_cpu": small[1],
        "padded": padded() if padded else None,
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
    print(json.dumps(answer), flush=True)


def _cpu_seconds() -> float:
    """CPU time of this process, its children and those that have ended."""
    me = psutil.Process()
    tree = [me, *me.children(recursive=True)]
    return sum(sum(process.cpu_times()[:4]) for process in tree)


def _do(
    predict: Callable[[str, str], object], data: str, out: str
) -> tuple[float, float]:
    """Wall and CPU seconds of one job."""
    shutil.rmtree(out, ignore_errors=True)
    Path(out).mkdir(parents=True)
    cpu, start = _cpu_seconds(), time.perf_counter()
    predict(data, out)
    return time.perf_counter() - start, _cpu_seconds() - cpu
