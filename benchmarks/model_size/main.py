"""What a model costs by its size: time, graph, scheduler, and memory of the workers."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import dask.dataframe as dd
import pandas as pd
import torch

import dask_infer
from benchmarks import measure

WORKERS = 4
PARTITIONS = 32
HEADER = (
    "model MB | dtype | predict() s | first prediction s | all workers s | "
    "graph bytes | scheduler MB | workers | copies | of which mapped | "
    "copies, next model"
)


def build(megabytes: float) -> torch.nn.Module:
    """Stack of linear layers of about so many million bytes in float32."""
    width = 512 if megabytes < 50 else 2048
    layers = max(1, round(megabytes * 1e6 / (4 * width * width)))
    stack = [torch.nn.Linear(width, width, bias=False) for _ in range(layers)]
    return torch.nn.Sequential(
        torch.nn.Linear(1, width), *stack, torch.nn.Linear(width, 1)
    )


def rows() -> dd.DataFrame:
    """Few rows in many partitions: the model is the cost."""
    frame = pd.DataFrame({"x": range(PARTITIONS * 8)}, dtype="float32")
    return dd.from_pandas(frame, npartitions=PARTITIONS)


def one(megabytes: float, dtype: str | None) -> dict[str, Any]:
    """Figures of one model on a fresh cluster with an empty content store."""
    model = build(megabytes)
    size = sum(parameter.nbytes for parameter in model.parameters())
    with measure.fresh_store() as store, measure.cluster(WORKERS) as client:
        answer = figures(client, model, dtype)
        answer["mapped"] = sum(client.run(measure.own_pss, store).values())
        before = memory(client)
        rows().infer.predict(build(megabytes), dtype=dtype).compute()
        answer["next"] = memory(client) - before
    return {"size": size, **answer}


def figures(client: Any, model: torch.nn.Module, dtype: str | None) -> dict[str, Any]:
    """Times and memory, over workers that have run a model of a few bytes before."""
    while len(dask_infer.replicas(client)) < WORKERS:
        rows().infer.predict(torch.nn.Linear(1, 1), dtype=dtype).compute()
    workers, scheduler = memory(client), client.run_on_scheduler(measure.settled_rss)
    declared, lazy = measure.timed(lambda: rows().infer.predict(model, dtype=dtype))
    first, _ = measure.timed(lambda: lazy.partitions[0].compute())
    spread, _ = measure.timed(lazy.compute)
    residents = dask_infer.replicas(client)
    largest = residents[residents["bytes"] == residents["bytes"].max()]
    return {
        "declared": declared,
        "first": declared + first,
        "all": spread,
        "graph": measure.graph_bytes(lazy),
        "scheduler": client.run_on_scheduler(measure.settled_rss) - scheduler,
        "workers": memory(client) - workers,
        "loaded": int(largest["worker"].nunique()),
    }


def memory(client: Any) -> int:
    """Proportional set size of all workers; a shared page counts once in the sum."""
    return sum(client.run(measure.own_pss).values())


def line(dtype: str, answer: dict[str, Any]) -> list[str]:
    """One row of the table."""
    itemsize = 2 if dtype == "bfloat16" else 4
    copy = answer["size"] * itemsize / 4
    return [
        f"{copy / 1e6:.0f}",
        dtype,
        f"{answer['declared']:.2f}",
        f"{answer['first']:.2f}",
        f"{answer['all']:.2f}",
        f"{answer['graph']}",
        f"{answer['scheduler'] / 1e6:.1f}",
        f"{answer['loaded']}",
        f"{answer['workers'] / copy:.2f}",
        f"{answer['mapped'] / copy:.2f}",
        f"{answer['next'] / copy:.2f}",
    ]


def main() -> None:
    """Measure and print; every model in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", type=float, default=[1, 10, 100, 1000])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--one", action="store_true", help="print one answer as JSON")
    arguments = parser.parse_args()
    if arguments.one:
        dtype = arguments.dtypes[0]
        answer = one(arguments.sizes[0], None if dtype == "float32" else dtype)
        return print(json.dumps(answer))
    lines = []
    for dtype in arguments.dtypes:
        for size in arguments.sizes:
            command = [sys.executable, "-m", "benchmarks.model_size.main", "--one"]
            command += ["--sizes", str(size), "--dtypes", dtype]
            lines.append(line(dtype, measure.run(command)))
    print(measure.machine(), measure.table(HEADER.split(" | "), lines), sep="\n\n")


if __name__ == "__main__":
    main()
