"""Predictions on one GPU against loops written by hand for it.

The plain loop is what people write: batches of 64 rows in the order of the frame,
copied, run, copied back. The tuned loop is the limit: all rows sorted by length, the
best size of a sweep, pinned memory, copies beside the forward.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    ResNetConfig,
    ResNetForImageClassification,
)

import dask_infer
from benchmarks import measure
from dask_infer.batch.tensor.tensor_array import TensorArray
from dask_infer.replica.cache import cache

#: How often the rows are taken, so that a job takes seconds.
PASSES = 4
SIZES = (32, 128, 512, 2048, 8192, 32768)
HEADER = "job | rows/s of the tuned loop | of predict | time / tuned | plain / tuned"
HEADER += " | on a cluster / tuned | best size | size of predict | peak GB"


class Pooled(nn.Module):
    """Mean of the last hidden states over real tokens."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.bert = BertModel(config, add_pooling_layer=False)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        hidden = self.bert(input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)


def table(rows: int) -> tuple[nn.Module, pd.DataFrame, Any]:
    """MLP of 2.2 M parameters over 32 numbers."""
    model = nn.Sequential(
        nn.Linear(32, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(),
        nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 4),
    )  # fmt: skip
    values = np.random.default_rng(0).normal(size=(rows, 32)).astype("float32")
    frame = pd.DataFrame(values, columns=[f"x{i}" for i in range(32)])
    return model, frame, list(frame.columns)


def images(rows: int) -> tuple[nn.Module, pd.DataFrame, Any]:
    """ResNet-50 over 3 x 128 x 128 pixels."""
    model = ResNetForImageClassification(ResNetConfig(num_labels=10))
    pixels = np.random.default_rng(0).random((rows, 3, 128, 128), dtype="float32")
    column = TensorArray.from_numpy(pixels)
    return model, pd.DataFrame({"pixel_values": column}), "pixel_values"


def texts(rows: int) -> tuple[nn.Module, pd.DataFrame, Any]:
    """BERT of 12 layers of 768 over 4 to 512 ids, most of them few."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(4, 0.8, rows), 4, 512).astype(int)
    ids = [random.integers(1, 30000, n) for n in lengths]
    return Pooled(BertConfig()), pd.DataFrame({"ids": ids}), {"input_ids": "ids"}


JOBS = {
    "MLP": (table, 2_000_000),
    "ResNet-50": (images, 4_000),
    "BERT": (texts, 20_000),
}


def batches(frame: pd.DataFrame, size: int, sort: bool) -> Iterator[dict[str, Any]]:
    """Tensors on the CPU; for texts `size` is that of 128 padded tokens."""
    if "ids" not in frame:
        columns = list(frame.columns)
        if columns == ["pixel_values"]:
            values = frame.pixel_values.infer.to_numpy()
        else:
            values = frame.to_numpy()
        for start in range(0, len(values), size):
            yield {"": torch.from_numpy(values[start : start + size])}
        return
    rows = sorted(frame.ids, key=len, reverse=True) if sort else list(frame.ids)
    start = 0
    while start < len(rows):
        width = len(rows[start]) if sort else max(map(len, rows[start : start + size]))
        taken = rows[start : start + (max(1, size * 128 // width) if sort else size)]
        lengths = np.array([len(row) for row in taken])
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids = np.zeros(mask.shape, "int64")
        ids[mask] = np.concatenate(taken)
        tensors = (torch.from_numpy(ids), torch.from_numpy(mask.astype("int64")))
        yield dict(zip(("input_ids", "attention_mask"), tensors, strict=True))
        start += len(taken)


def called(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """First output of a forward."""
    output = model(batch[""]) if "" in batch else model(**batch)
    logits: torch.Tensor = getattr(output, "logits", output)
    return logits


def plain(model: nn.Module, frame: pd.DataFrame) -> None:
    """The loop that people write."""
    with torch.inference_mode():
        for batch in batches(frame, 64, sort=False):
            called(model, {k: v.to("cuda") for k, v in batch.items()}).float().cpu()


def tuned(model: nn.Module, frame: pd.DataFrame, size: int, passes: int = 1) -> None:
    """The limit: copies beside the forward, the host ahead of the device."""
    side = torch.cuda.Stream()
    done = []
    with torch.inference_mode():
        for batch in chain(*(batches(frame, size, True) for _ in range(passes))):
            with torch.cuda.stream(side):
                moved = {
                    k: v.pin_memory().to("cuda", non_blocking=True)
                    for k, v in batch.items()
                }
            torch.cuda.current_stream().wait_stream(side)
            output = called(model, moved).float()
            kept = torch.empty(output.shape, pin_memory=True)
            kept.copy_(output, non_blocking=True)
            for value in moved.values():
                value.record_stream(torch.cuda.current_stream())
            done.append(kept)
    torch.cuda.synchronize()


def predict(model: nn.Module, ddf: Any, columns: Any, **options: Any) -> None:
    """The same by `predict`."""
    ddf.infer.predict(model, columns=columns, keep=False, **options).compute()


def best_size(model: nn.Module, frame: pd.DataFrame) -> int:
    """The size of the tuned loop that is fastest on a part of the rows."""
    seconds = {}
    for size in SIZES:
        try:
            tuned(model, frame[: 4 * size], size)
            seconds[size] = measure.timed(partial(tuned, model, frame, size))[0]
        except torch.cuda.OutOfMemoryError:
            break
    return min(seconds, key=seconds.__getitem__)


def measured(name: str, dtype: str, rounds: int, scale: float) -> list[object]:
    """Line of the table for one job."""
    make, rows = JOBS[name]
    torch.manual_seed(0)
    model, frame, columns = make(int(rows * scale))
    model = model.eval()
    with dask.config.set({"dataframe.convert-string": False}):
        ddf = dd.from_pandas(frame, npartitions=8)
    resident = make(8)[0].eval().to("cuda", getattr(torch, dtype))
    if dtype != "float32" and name != "BERT":
        floats = partial(_cast, resident)
    else:
        floats = resident
    size = best_size(floats, frame[: max(64, len(frame) // 4)])
    options = {"dtype": dtype, "output": None if name == "BERT" else "y"}
    jobs = dd.concat([ddf] * PASSES)
    contenders: dict[str, Callable[[], Any]] = {
        "tuned": partial(tuned, floats, frame, size, PASSES),
        "predict": partial(predict, model, jobs, columns, **options),
    }
    contenders["predict"]()
    policy = _policy()
    torch.cuda.reset_peak_memory_stats()
    runs = measure.interleave(
        {k: lambda c=c: measure.timed(c)[0] for k, c in contenders.items()}, rounds
    )
    peak = torch.cuda.max_memory_allocated() / 1e9
    dask_infer.unload()
    seconds = {key: measure.median(values) for key, values in runs.items()}
    seconds["plain"] = measure.timed(partial(plain, floats, frame))[0] * PASSES
    with measure.cluster(1, nthreads=4):
        there = dd.concat([ddf.persist()] * PASSES)
        again = partial(predict, model, there, columns, **options)
        seconds["cluster"] = _on_cluster(again, rounds)
        del there, again
    del resident, floats
    torch.cuda.empty_cache()
    limit = seconds["tuned"]
    print(name, dtype, {k: round(v, 3) for k, v in seconds.items()}, flush=True)
    rows = PASSES * len(frame)
    return [
        f"{name}, {dtype}", f"{rows / limit:,.0f}",
        f"{rows / seconds['predict']:,.0f}", f"{seconds['predict'] / limit:.2f}",
        f"{seconds['plain'] / limit:.2f}", f"{seconds['cluster'] / limit:.2f}",
        size, policy, f"{peak:.1f}",
    ]  # fmt: skip


def _cast(model: nn.Module, values: torch.Tensor) -> Any:
    return model(values.to(next(model.parameters()).dtype))


def _policy() -> str:
    (replica,) = cache.replicas()
    return ", ".join(f"{p.size} {p.unit}" for p in replica.sizes.policies())


def _on_cluster(call: Callable[[], Any], rounds: int) -> float:
    call()
    return measure.median([measure.timed(call)[0] for _ in range(rounds)])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", nargs="+", default=list(JOBS))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0)
    arguments = parser.parse_args()
    with measure.fresh_store(), dask.config.set({"scheduler": "threads"}):
        lines = [
            measured(name, dtype, arguments.rounds, arguments.scale)
            for name in arguments.jobs
            for dtype in arguments.dtypes
        ]
    print(torch.cuda.get_device_name(), measure.machine(), sep="; ", end="\n\n")
    print(measure.table(HEADER.split(" | "), lines))


if __name__ == "__main__":
    main()
