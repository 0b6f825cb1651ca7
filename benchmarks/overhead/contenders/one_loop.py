"""One torch loop written by hand, two torch threads."""

from __future__ import annotations

from pathlib import Path

import torch
from job import WORKERS, build, files, measure
from two_processes import predict_file


def main() -> None:
    """Time the job in this process."""
    torch.set_num_threads(WORKERS)
    model = build()

    def predict(data: str, out: str) -> None:
        for source in files(data):
            predict_file(model, source, Path(out) / source.name, use_threads=True)

    measure(predict, "torch", "pyarrow")


if __name__ == "__main__":
    main()
