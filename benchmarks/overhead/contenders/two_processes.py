"""The limit: two processes written by hand, one torch thread each.

The processes take files from one queue, read the needed columns alone, copy them
once into a block, and write a file for a file.
"""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from job import BATCH, FEATURES, WORKERS, build, files, measure

CONTEXT = multiprocessing.get_context("spawn")


def predict_file(model, source: Path, target: Path, use_threads: bool = False) -> None:
    """Read a file, run the model, write id and prediction."""
    table = pq.read_table(source, columns=["id", *FEATURES], use_threads=use_threads)
    block = np.empty((len(FEATURES), len(table)), np.float32)
    for row, name in zip(block, FEATURES, strict=True):
        row[:] = table[name].to_numpy()
    predictions = torch.empty(len(table))
    with torch.inference_mode():
        inputs = torch.from_numpy(block).T
        for start in range(0, len(table), BATCH):
            batch = slice(start, start + BATCH)
            predictions[batch] = model(inputs[batch])[:, 0]
    columns = {"id": table["id"], "prediction": predictions.numpy()}
    pq.write_table(pa.table(columns), target)


def serve(todo: SimpleQueue, done: SimpleQueue) -> None:
    """Work of one process: files from the queue until None comes."""
    torch.set_num_threads(1)
    model = build()
    done.put(os.getpid())
    while (item := todo.get()) is not None:
        predict_file(model, *item)
        done.put(os.getpid())


def main() -> None:
    """Start the processes and time the job."""
    todo, done = CONTEXT.SimpleQueue(), CONTEXT.SimpleQueue()
    queues = todo, done
    processes = [CONTEXT.Process(target=serve, args=queues) for _ in range(WORKERS)]
    for process in processes:
        process.start()
    for _ in processes:
        done.get()

    def predict(data: str, out: str) -> None:
        sources = files(data)
        for source in sources:
            todo.put((source, Path(out) / source.name))
        for _ in sources:
            done.get()

    try:
        measure(predict, "torch", "pyarrow")
    finally:
        for _ in processes:
            todo.put(None)
        for process in processes:
            process.join()


if __name__ == "__main__":
    main()
