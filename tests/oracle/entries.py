"""What an entry of the catalogue is: a model, what it reads and what one row gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from hypothesis import strategies as st
from torch import nn

ArgKind = Literal["scalar", "vector", "list", "ids", "text", "bytes", "frame"]
Reads = Literal["tensor", "numpy", "frame"]


@dataclass(frozen=True)
class Arg:
    """One argument of a model, in terms of columns."""

    kind: ArgKind
    #: What its columns may hold; a "frame" has exactly these, in order.
    holds: tuple[str, ...] = ("float",)
    #: Columns of a "vector", numbers in a row of a "list".
    width: int = 1
    #: Name under which it may be passed as a keyword.
    keyword: str | None = None
    #: A "vector" may be one column of lists as well.
    lists: bool = False
    #: It goes in as integers: what is missing there fails its row.
    integer: bool = False
    missing: bool = True
    values: st.SearchStrategy[Any] | None = None
    dtypes: tuple[str, ...] = ()
    #: Names of the columns of a "frame".
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Out:
    """One output of a model."""

    dtype: Any
    #: () for a scalar, else a list of any length.
    ndim: int = 0


@dataclass(frozen=True)
class Entry:
    """A model of the catalogue."""

    name: str
    make: Callable[[], Any]
    args: tuple[Arg, ...]
    #: By field; "" is an output that is one value.
    outputs: Mapping[str, Out]
    #: The values of one row -> value, or values by field; raises where the row fails.
    alone: Callable[..., Any]
    reads: Reads = "tensor"
    #: The outputs can be known before anything runs.
    inferred: bool = True
    #: Fixed arguments of the call.
    call: Mapping[str, Any] = field(default_factory=dict)
    #: What comes out is refused under every `on_error`: for batches of `least` rows up.
    structure: int = 0
    #: The call itself is refused.
    refused: type[Exception] | None = None
    #: Columns are passed in this form only.
    forms: tuple[str, ...] = ("bare", "tuple", "dict", "none", "series")
    #: How often it is drawn.
    weight: int = 4
    tolerance: float = 1e-5
    #: Stages that it can be cut into at most; 1 where it cannot be cut.
    blocks: int = 1
    #: How many it consists of, each on workers of its own.
    models: int = 1

    @property
    def has_divisible_weights(self) -> bool:
        """Whether shards can divide it: linear layers, embeddings, convolutions."""
        model = self.make()
        if not isinstance(model, nn.Module):
            return str(model).endswith(".pt2") or self.blocks > 1
        divisible = (nn.Linear, nn.Embedding, nn.Conv1d)
        return any(isinstance(module, divisible) for module in model.modules())


def batch_of_one(*values: Any) -> list[torch.Tensor]:
    """Return the arguments of one row as the tensors that a module reads."""
    return [_tensor(value) for value in values]


def _tensor(value: Any) -> torch.Tensor:
    array = np.asarray([value])
    dtype = torch.float32 if array.dtype.kind == "f" else None
    return torch.tensor(array, dtype=dtype)


def module_alone(
    make: Callable[[], Any], pick: Callable[[Any], Any] | None = None
) -> Callable[..., Any]:
    """Call a module on one row; `pick` tells the row's values from what it returned."""

    def alone(*values: Any) -> Any:
        model = make().eval()
        with torch.inference_mode():
            found = model(*batch_of_one(*values))
        return pick(found) if pick else first(found)

    return alone


def first(found: Any) -> Any:
    """Return the first row of an output."""
    if isinstance(found, Mapping):
        return {key: first(value) for key, value in found.items()}
    if isinstance(found, pd.Series):
        return found.iloc[0]
    row = found[0]
    if torch.is_tensor(row):
        return row.float().tolist() if row.dtype == torch.bfloat16 else row.tolist()
    return row
