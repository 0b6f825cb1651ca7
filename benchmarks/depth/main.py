"""What becomes of a pipeline's schedule as it gets deeper."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

import dask_infer
from benchmarks import measure
from benchmarks.pipeline.model import Block, Head, frame
from dask_infer import Layout

HEADER = (
    "stages | model | microbatches | seconds | range | CPU s | slept ms | efficiency | "
    "M/(M+N-1)"
)

STAGES = (2, 4, 8)
#: Layers of the model that computes, and their width.
LAYERS, WIDTH = 8, 256


class Sleeps(nn.Module):
    """A layer that holds neither the core nor the interpreter while it takes time.

    It notes how long that was: on a busy machine longer than it asked for.
    """

    def __init__(self, seconds: float, notes: Path) -> None:
        super().__init__()
        self.seconds, self.notes = seconds, str(notes)
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output, later."""
        if type(x) is torch.Tensor:  # and no fake one, as shapes are found with
            start = time.perf_counter()
            time.sleep(self.seconds)
            with open(self.notes, "a") as notes:
                notes.write(f"{time.perf_counter() - start}\n")
        return self.linear(x)


def sleeping(stages: int, seconds: float, notes: Path) -> tuple[nn.Module, Layout, int]:
    """Return a model with a sleep in each stage, and how it is cut."""
    sleeps = [Sleeps(seconds, notes) for _ in range(stages)]
    layers = [nn.Embedding(1000, 8), *sleeps, Head(8)]
    cuts = [str(n) for n in range(2, stages + 1)]
    return nn.Sequential(*layers), Layout(stages=cuts, microbatch=1, replicas=1), 1


def computing(stages: int, rows: int) -> tuple[nn.Module, Layout, int]:
    """Return always the same layers, and how they are cut."""
    torch.manual_seed(0)
    blocks = [Block(WIDTH) for _ in range(LAYERS)]
    layers = [nn.Embedding(1000, WIDTH), *blocks, Head(WIDTH)]
    each = LAYERS // stages
    cuts = [str(1 + n * each) for n in range(1, stages)]
    return (
        nn.Sequential(*layers),
        Layout(stages=cuts, microbatch=rows, replicas=1),
        rows,
    )


def run(
    client: Any, frame: Any, model: nn.Module, layout: Layout, notes: Path
) -> dict[str, float]:
    """Put all rows through once; `slept` is what a stage took, 0 where none did."""

    def cpu() -> float:
        taken = client.run(lambda: sum(psutil.Process().cpu_times()[:2]))
        return float(sum(taken.values()))

    pred = frame.infer.predict(model, columns="ids", keep=False, parallel=layout)
    notes.write_text("")
    before = cpu()
    seconds, result = measure.timed(pred.compute)
    assert result["prediction"].notna().all() and len(result) == len(frame)
    slept = [float(each) for each in notes.read_text().split()]
    mean = statistics.mean(slept) if slept else 0.0
    return {"seconds": seconds, "cpu": cpu() - before, "slept": mean}


def line(
    stages: int, name: str, microbatches: int, runs: list[dict[str, float]]
) -> list[Any]:
    """One line of the table; the efficiency of sleeps alone is measured."""
    seconds = [run["seconds"] for run in runs]
    cpu = measure.median([run["cpu"] for run in runs])
    columns = [f"{measure.median(seconds):.2f}", measure.spread(seconds), f"{cpu:.2f}"]
    slept = measure.median([run["slept"] for run in runs])
    if slept:
        shares = [microbatches * run["slept"] / run["seconds"] for run in runs]
        columns.append(f"{1e3 * slept:.0f}")
        columns.append(f"{measure.median(shares):.3f}")
        columns.append(f"{microbatches / (microbatches + stages - 1):.3f}")
    else:
        columns += ["", "", ""]
    return [stages, name, microbatches, *columns]


def compare(stages: int, options: argparse.Namespace) -> list[list[Any]]:
    """Lines of the table for one number of stages, on as many workers."""
    microbatches, lines = options.microbatches, []
    with (
        tempfile.TemporaryDirectory() as place,
        measure.fresh_store(),
        measure.cluster(stages) as client,
    ):
        notes = Path(place) / "slept"
        models = {
            "sleeps": sleeping(stages, options.sleep, notes),
            "computes": computing(stages, options.rows),
        }
        for name in options.models:
            model, layout, rows = models[name]
            ddf = frame(microbatches * rows, microbatches // 8)
            call = partial(run, client, ddf, model, layout, notes)
            call()  # loads the model
            runs = [call() for _ in range(options.rounds)]
            lines.append(line(stages, name, microbatches, runs))
            dask_infer.unload(client=client)
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", nargs="+", type=int, default=STAGES)
    parser.add_argument("--models", nargs="+", default=["sleeps", "computes"])
    parser.add_argument("--microbatches", type=int, default=64)
    parser.add_argument("--sleep", type=float, default=0.05)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    lines = [line for stages in options.stages for line in compare(stages, options)]
    lines.sort(key=lambda line: str(line[1]), reverse=True)
    print(measure.machine(), measure.table(HEADER.split(" | "), lines), sep="\n\n")


if __name__ == "__main__":
    main()
