"""One process with all threads: a loop over batches, written by hand."""

from __future__ import annotations

import json
import sys
import time

import torch

from benchmarks.pipeline.model import build, ids


def main(rows: int, size: int) -> None:
    """Time the loop, after a batch that warms up."""
    model, batches = build(), torch.tensor(ids(rows)).split(size)
    with torch.inference_mode():
        model(batches[0])
        start, cpu = time.perf_counter(), time.process_time()
        for batch in batches:
            model(batch)
    times = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    print(json.dumps(times))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
