"""`torch.distributed.pipelining` on two processes: the GPipe schedule.

Its stages are two halves of the sequence, given by hand. A step takes a whole number of
microbatches: the rows are a multiple of that, since 13 rows in 4 microbatches came back
as 16 (torch 2.13.0).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

from benchmarks.pipeline.model import LAYERS, build, ids

STAGES = 2
#: Microbatches of one step: what it fills and drains for.
MICROBATCHES = 12


def serve(rank: int, port: int, rows: int, size: int, answers: Any) -> None:
    """Run one stage over all rows."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=STAGES)
    layers = list(build())
    half = 1 + LAYERS // STAGES
    part = nn.Sequential(*(layers[:half] if rank == 0 else layers[half:]))
    stage = PipelineStage(part, rank, STAGES, torch.device("cpu"))
    schedule = ScheduleGPipe(stage, MICROBATCHES)
    steps = torch.tensor(ids(rows)).split(size * MICROBATCHES)
    outputs = []
    with torch.no_grad():
        step(schedule, rank, steps[0])
        dist.barrier()
        start, cpu = time.perf_counter(), time.process_time()
        for given in steps:
            outputs.append(step(schedule, rank, given))
        dist.barrier()
    answers.put((time.perf_counter() - start, time.process_time() - cpu))
    if rank == STAGES - 1:
        check(torch.cat(outputs), rows)
    dist.destroy_process_group()


def step(schedule: ScheduleGPipe, rank: int, given: torch.Tensor) -> Any:
    """Put one batch of microbatches through."""
    return schedule.step(given) if rank == 0 else schedule.step()


def check(outputs: torch.Tensor, rows: int) -> None:
    """See that every row is right."""
    with torch.no_grad():
        parts = torch.tensor(ids(rows)).split(64)
        whole = build()
        right = torch.cat([whole(part) for part in parts])
    torch.testing.assert_close(outputs, right, atol=1e-4, rtol=1e-3)


def main(rows: int, size: int) -> None:
    """Start the processes and print their times."""
    if rows % (size * MICROBATCHES):
        raise SystemExit(f"{rows} rows are no multiple of {size} x {MICROBATCHES}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    given = (port, rows, size, answers)
    processes = [context.Process(target=serve, args=(r, *given)) for r in range(STAGES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise SystemExit(f"a stage ended with {process.exitcode}")
    times = [answers.get() for _ in processes]
    seconds, cpu = max(t for t, _ in times), sum(c for _, c in times)
    print(json.dumps({"seconds": seconds, "cpu": cpu}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
