"""The transformer and the rows that every contender gets."""

from __future__ import annotations

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import nn

LAYERS, WIDTH, HEADS = 12, 512, 8
#: Tokens of a row, and how many there are.
TOKENS, VOCABULARY = 8, 1000


class Block(nn.Module):
    """One transformer layer, normalised first."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what goes into the next layer, as wide."""
        rows, tokens, width = x.shape
        qkv = self.qkv(self.norms[0](x))
        parts = qkv.view(rows, tokens, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(*parts.unbind(0))
        x = x + self.out(seen.transpose(1, 2).reshape(rows, tokens, width))
        return x + self.mlp(self.norms[1](x))


class Head(nn.Module):
    """One number a row."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the mean over tokens, made one number."""
        return self.linear(x.mean(1))


def build(layers: int = LAYERS, width: int = WIDTH) -> nn.Sequential:
    """Return the model; always with the same weights."""
    torch.manual_seed(0)
    blocks = [Block(width) for _ in range(layers)]
    return nn.Sequential(nn.Embedding(VOCABULARY, width), *blocks, Head(width)).eval()


def ids(rows: int) -> np.ndarray:
    """Return the tokens of all rows."""
    random = np.random.default_rng(0)
    return random.integers(0, VOCABULARY, (rows, TOKENS))


def frame(rows: int, partitions: int) -> dd.DataFrame:
    """Return the rows as a frame with one list column."""
    lists = pa.FixedSizeListArray.from_arrays(pa.array(ids(rows).ravel()), TOKENS)
    column = pd.arrays.ArrowExtensionArray(lists)
    return dd.from_pandas(pd.DataFrame({"ids": column}), npartitions=partitions)
