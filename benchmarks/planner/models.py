"""Models whose layers take their time, in a module of their own for equal keys."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch
from torch import nn

WIDTH = 64
#: Variable of the worker that stands for one with a GPU: how many times as fast it is.
SPEED = "BENCHMARK_SPEED"


class Layer(nn.Module):
    """A layer that takes its time, some of a core or none, and some memory."""

    def __init__(self, seconds: float, megabytes: float, computes: bool) -> None:
        super().__init__()
        self.seconds, self.computes = seconds, computes
        self.table = nn.Parameter(torch.zeros(int(megabytes * 2**20 / 4)))
        self.scale = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return as many numbers."""
        if type(x) is torch.Tensor and x.device.type != "meta":  # no fake one
            _spend(self.seconds * len(x), self.computes)
            self.table[::1024].sum()  # reads each page of mapped weights
        return self.scale(x)


def _spend(seconds: float, computes: bool) -> None:
    seconds /= float(os.environ.get(SPEED, 1))
    if not computes:
        time.sleep(seconds)
        return
    began = time.thread_time()
    matrix = torch.ones(64, 64)
    while time.thread_time() - began < seconds:
        matrix @ matrix


@dataclass(frozen=True)
class Model:
    """Layers that are alike."""

    layers: int
    #: Seconds of a row in all layers.
    row: float
    megabytes: float
    computes: bool = False

    def build(self) -> nn.Module:
        """Return the module."""
        torch.manual_seed(0)
        layer = (self.row / self.layers, self.megabytes / self.layers, self.computes)
        return nn.Sequential(*(Layer(*layer) for _ in range(self.layers)))
