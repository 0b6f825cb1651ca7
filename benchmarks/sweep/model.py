"""The model that every contender gets, and its files.

It imports nothing of this project: the environment of the peers has torch alone.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import nn

#: Numbers of a row; a layer has 8 * WIDTH**2 weights, 32 MiB.
WIDTH = 1024
#: Rows of a forward.
BATCH = 32


class Layer(nn.Module):
    """A residual layer."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what goes into the next layer."""
        return x + self.down(torch.relu(self.up(x)))


def build(layers: int) -> nn.Module:
    """Return the model, with weights that are to be loaded."""
    return nn.Sequential(*[Layer() for _ in range(layers)])


def write(layers: int, folder: Path) -> Path:
    """Write weights, a file a layer, and the index of the files."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    names = {}
    for number in range(layers):
        tensors = {
            f"{number}.up.weight": torch.randn(4 * WIDTH, WIDTH) / 2000,
            f"{number}.down.weight": torch.randn(WIDTH, 4 * WIDTH) / 2000,
        }
        file = f"layer-{number:03}.safetensors"
        save_file(tensors, folder / file)
        names.update(dict.fromkeys(tensors, file))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return index


def rows(count: int) -> np.ndarray:
    """Return the rows, always the same."""
    return np.random.default_rng(0).normal(size=(count, WIDTH)).astype("float32")


class Measured:
    """Wall and CPU seconds of a block, and the most memory it adds."""

    def __enter__(self) -> Measured:
        self._process, self._ends = psutil.Process(), threading.Event()
        self._before = self._peak = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.perf_counter() - self._wall
        self.cpu = time.process_time() - self._cpu
        self._ends.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ends.wait(0.02):
            self._peak = max(self._peak, self._process.memory_info().rss)

    def answer(self, output: np.ndarray) -> str:
        """Return the figures as the last line of a contender."""
        return json.dumps(
            {
                "seconds": self.seconds,
                "cpu": self.cpu,
                "mib": (self._peak - self._before) / 2**20,
                "sum": float(np.abs(output).sum()),
            }
        )
