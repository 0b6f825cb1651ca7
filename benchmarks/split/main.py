"""What the first call with stages costs on the client, by the depth of the model."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from functools import partial
from typing import Any

from benchmarks import measure

HEADER = (
    "model | layers | first predict() CPU s | of which shapes | of which the split | "
    "second, CPU ms | blocks timed, CPU s"
)


def frame(*names: str) -> Any:
    """Return rows of lists of four whole numbers."""
    import pandas as pd
    import pyarrow as pa

    lists = pd.ArrowDtype(pa.list_(pa.int64(), 4))
    return pd.DataFrame({n: pd.Series([[1, 1, 1, 1]] * 8, dtype=lists) for n in names})


def encoder(layers: int) -> tuple[Any, Any, dict[str, Any]]:
    """Return layers of torch's own encoder around an embedding, and their inputs."""
    import torch
    from torch import nn

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(1000, 256)
            self.layers = nn.ModuleList(
                nn.TransformerEncoderLayer(256, 4, 512, batch_first=True)
                for _ in range(layers)
            )
            self.head = nn.Linear(256, 4)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.embed(ids)
            for layer in self.layers:
                x = layer(x)
            return self.head(x.mean(1))

    return Encoder().eval(), frame("ids"), {"columns": "ids"}


def bert(layers: int) -> tuple[Any, Any, dict[str, Any]]:
    """Return a BERT classifier of width 256, and its inputs."""
    import transformers

    config = transformers.BertConfig(
        hidden_size=256,
        intermediate_size=512,
        num_attention_heads=4,
        num_hidden_layers=layers,
        vocab_size=1000,
    )
    model = transformers.BertForSequenceClassification(config).eval()
    rows = frame("input_ids", "attention_mask")
    columns = {name: name for name in rows}
    return model, rows, {"columns": columns, "output": {"logits": "score"}}


MODELS = {"encoder": encoder, "bert": bert}


def one(name: str, layers: int) -> dict[str, float]:
    """Measure a first and a second call; a process alone, warm by a tiny model."""
    import dask.dataframe as dd
    from torch.utils._triton import has_triton

    import dask_infer
    from dask_infer.client import call_group, tracing
    from dask_infer.model.runtime.stage_model import read_chain
    from dask_infer.model.split import profile

    warnings.simplefilter("ignore")
    has_triton()
    spent: dict[str, float] = {}
    noted(tracing, "propagate", spent)
    noted(call_group, "chain_blob", spent)
    layout = dask_infer.Layout(stages=2)

    def call(layers: int) -> tuple[float, Any]:
        model, rows, options = MODELS[name](layers)
        ddf = dd.from_pandas(rows, npartitions=1)
        spent.clear()
        start = time.process_time()
        ddf.infer.predict(model, parallel=layout, keep=False, **options)
        return time.process_time() - start, (ddf, model, options)

    with measure.fresh_store(), measure.cluster(2):
        import_all()
        first, (ddf, model, options) = call(layers)
        parts = {"propagate": 0.0, **spent}
        again = partial(ddf.infer.predict, model, parallel=layout, keep=False)
        second = min(cpu_seconds(partial(again, **options)) for _ in range(3))
        chain = read_chain(CHAINS[-1])
        blocks = partial(profile, chain, 0, len(chain.blocks), tokens=32, threads=1)
        timed = sum(cpu_seconds(partial(blocks, rows)) for rows in (1, 32))
    return {"first": first, **parts, "second": second, "timed": timed}


#: What `chain_blob` returned.
CHAINS: list[Any] = []


def noted(module: Any, name: str, spent: dict[str, float]) -> None:
    """Note the CPU seconds of a function of a module."""
    function = getattr(module, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            result = function(*args, **kwargs)
            CHAINS.append(result)
            return result
        finally:
            spent[name] = spent.get(name, 0.0) + time.process_time() - start

    setattr(module, name, wrapped)


def cpu_seconds(call: Any) -> float:
    """CPU seconds of this process in one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def import_all() -> None:
    """Import what an export imports, without any model of the measurement."""
    import torch

    torch.export.export(torch.nn.ReLU(), (torch.ones(2, 2),), strict=False)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--layers", nargs="+", type=int, default=[8, 80])
    parser.add_argument("--one", action="store_true")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.models[0], options.layers[0])))
        return
    lines = []
    for name in options.models:
        for layers in options.layers:
            command = [sys.executable, "-m", "benchmarks.split.main", "--one"]
            command += ["--models", name, "--layers", str(layers)]
            out = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(out.stdout.splitlines()[-1])
            lines.append(
                [
                    name,
                    layers,
                    f"{found['first']:.2f}",
                    f"{found['propagate']:.2f}",
                    f"{found['chain_blob']:.2f}",
                    f"{1e3 * found['second']:.0f}",
                    f"{found['timed']:.2f}",
                ]
            )
    print(measure.machine(), measure.table(HEADER.split(" | "), lines), sep="\n\n")


if __name__ == "__main__":
    main()
