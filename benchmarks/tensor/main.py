"""Layers in shards against whole replicas on the same workers, which hold both."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import torch

import dask_infer  # noqa: F401  (registers the accessor)
from benchmarks import measure
from dask_infer import Layout

HEADER = "model | tokens a row | contender | seconds | range | time ratio | CPU ratio"
#: Rows of a batch of every contender, and partitions of one batch each.
BATCH, PARTITIONS = 48, 12

Run = dict[str, float]


def bert() -> torch.nn.Module:
    """Return BERT of 6 layers, d=512."""
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=512, num_hidden_layers=6, num_attention_heads=8,
        intermediate_size=2048, vocab_size=1000, num_labels=2,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config).eval()


def gpt2() -> torch.nn.Module:
    """Return GPT-2 of 6 layers, d=512."""
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=512, n_layer=6, n_head=8, vocab_size=1000, num_labels=2, pad_token_id=0
    )
    return transformers.GPT2ForSequenceClassification(config).eval()


MODELS: dict[str, Callable[[], torch.nn.Module]] = {"BERT": bert, "GPT-2": gpt2}


def frame(tokens: int) -> dd.DataFrame:
    """Return rows of one list column."""
    random = np.random.default_rng(0)
    ids = random.integers(1, 1000, (BATCH * PARTITIONS, tokens))
    lists = pa.FixedSizeListArray.from_arrays(pa.array(ids.ravel()), tokens)
    column = pd.arrays.ArrowExtensionArray(lists)
    whole = pd.DataFrame({"ids": column})
    return dd.from_pandas(whole, npartitions=PARTITIONS)


def worker_seconds(client: Any) -> float:
    """Return the CPU seconds that all workers have taken so far."""
    return sum(client.run(lambda: sum(psutil.Process().cpu_times()[:2])).values())


def predict(client: Any, rows: Any, model: Any, layout: Any) -> tuple[Run, np.ndarray]:
    """Run the job once."""
    pred = rows.infer.predict(
        model, columns={"input_ids": "ids"}, keep=False, parallel=layout,
        batch_size=BATCH, output={"logits": "logits"},
    )  # fmt: skip
    before, began = worker_seconds(client), time.perf_counter()
    result = pred.compute()
    seconds = time.perf_counter() - began
    run = {"seconds": seconds, "cpu": worker_seconds(client) - before}
    return run, np.stack(result["logits"].to_numpy())


def compare(name: str, tokens: int, rounds: int) -> list[list[Any]]:
    """Lines of the table for one model."""
    model, rows = MODELS[name](), frame(tokens)
    layouts = {
        "data-parallel": "data",
        "2 shards": Layout(shards=2, microbatch=BATCH),
    }
    with measure.fresh_store(), measure.cluster(2) as client:
        right = predict(client, rows, model, "data")[1]
        predict(client, rows, model, layouts["2 shards"])  # loads

        def contender(layout: Any) -> Callable[[], Run]:
            def call() -> Run:
                run, values = predict(client, rows, model, layout)
                np.testing.assert_allclose(values, right, atol=1e-4)
                return run

            return call

        calls = {label: contender(layout) for label, layout in layouts.items()}
        answers = measure.interleave(calls, rounds)
    base = answers["data-parallel"]
    return [
        [name, tokens, label, *measure.beside(runs, base)]
        for label, runs in answers.items()
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--tokens", nargs="+", type=int, default=[8, 64])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    lines = [
        line
        for name in options.models
        for tokens in options.tokens
        for line in compare(name, tokens, options.rounds)
    ]
    print(measure.machine(), measure.table(HEADER.split(" | "), lines), sep="\n\n")


if __name__ == "__main__":
    main()
