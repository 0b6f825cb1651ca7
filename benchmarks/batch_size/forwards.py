"""The policy of ``batch_size="auto"`` on bare forwards: a quick look without Dask.

Forwards are timed by the thread's own clock, as the library does on a CPU, so that this
can be run on a busy machine.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks import measure
from benchmarks.batch_size.models import MODELS, ROWS, build
from dask_infer.batch.sizing.batch_size import BatchSize

SIZES = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
REPEATS = 5
HEADER = "model | settled at | best fixed | best / settled, rows/s | rows to settle"


def forward(model: torch.nn.Module, rows: torch.Tensor) -> float:
    """CPU seconds of one forward on rows of its own."""
    rows = rows.clone()
    start = time.thread_time()
    model(rows)
    return time.thread_time() - start


def line(name: str) -> list[object]:
    """Line of the table for one model."""
    model, shape = build(name)
    policy = BatchSize()
    policy.start(4 * torch.Size(shape).numel(), free_bytes=2**30)
    while not policy.settled:
        size = policy.next_size()
        policy.observe(size, forward(model, torch.randn(size, *shape)))
    sizes = {*SIZES, policy.size}
    calls: dict[str, Any] = {}
    for size in sizes:
        rows = torch.randn(size, *shape)
        calls[str(size)] = lambda rows=rows: len(rows) / forward(model, rows)
    rates = {k: max(v) for k, v in measure.interleave(calls, REPEATS).items()}
    best = max(rates, key=rates.__getitem__)
    ratio = rates[best] / rates[str(policy.size)]
    share = f"{policy.spent} ({100 * policy.spent / ROWS[name]:.1f} %)"
    return [name, policy.size, best, f"{ratio:.2f}", share]


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    with torch.inference_mode():
        lines = [line(name) for name in MODELS]
    print(measure.machine(), measure.table(HEADER.split(" | "), lines), sep="\n\n")


if __name__ == "__main__":
    main()
