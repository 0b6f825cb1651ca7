"""Three models whose best batch differs, and rows for each."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import nn

from dask_infer import TensorArray


def mlp() -> tuple[nn.Module, tuple[int, ...]]:
    """32 numbers through layers of 128."""
    layers = [nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, 1)), (32,)


def transformer() -> tuple[nn.Module, tuple[int, ...]]:
    """Two encoder layers of width 64 over 16 positions."""
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2)
    return nn.Sequential(encoder, nn.Flatten(), nn.Linear(16 * 64, 1)), (16, 64)


def cnn() -> tuple[nn.Module, tuple[int, ...]]:
    """Three convolutions over images of 32 x 32 pixels."""
    layers = [nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU()]
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 1)]
    return nn.Sequential(*layers, *tail), (3, 32, 32)


MODELS = {"mlp": mlp, "transformer": transformer, "cnn": cnn}
#: Rows of the job: about half a minute of one core each.
ROWS = {"mlp": 72_000_000, "transformer": 1_000_000, "cnn": 5_000_000}


def build(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """Model in eval mode and the shape of its rows."""
    torch.manual_seed(0)
    model, shape = MODELS[name]()
    return model.eval(), shape


def frame(shape: tuple[int, ...], rows: int) -> pd.DataFrame:
    """Random rows in one tensor column."""
    values = np.random.default_rng(0).standard_normal((rows, *shape), np.float32)
    return pd.DataFrame({"x": TensorArray.from_numpy(values)})
