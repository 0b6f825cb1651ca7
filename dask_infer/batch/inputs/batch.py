"""What a replica is called with: the arguments of one forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from dask_infer.batch.text.batch_padding import NOT_PADDED, Padding


@dataclass(eq=False)
class Batch:
    """The arguments of one forward. Tensors are on the CPU, in memory of their own."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    padding: Padding = NOT_PADDED
    #: Rows of the batch.
    rows: int = 0
    _frame: Callable[[], pd.DataFrame] = field(default=pd.DataFrame, repr=False)

    def add(self, keyword: str | None, value: Any) -> None:
        """Add an argument; None for a positional one."""
        if keyword is None:
            self.args += (value,)
        else:
            self.kwargs[keyword] = value

    def add_tokens(self, values: dict[str, Any], padding: Padding) -> None:
        """Add what was made of tokens; an argument that the user passes wins."""
        self.kwargs = values | self.kwargs
        if padding.width and not self.padding.width:
            self.padding = padding

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The rows as `preprocess` and `postprocess` see them; built when asked for."""
        return self._frame()

    @property
    def nbytes(self) -> int:
        """Bytes of the arguments that are tensors or arrays."""
        values = (*self.args, *self.kwargs.values())
        known = (getattr(value, "nbytes", 0) for value in values)
        return sum(size for size in known if isinstance(size, int))

    def shapes(self) -> str:
        """Dtypes and shapes of the arguments, for messages."""
        named = [*((None, value) for value in self.args), *self.kwargs.items()]
        return ", ".join(_shape(name, value) for name, value in named) or "none"


def _shape(name: str | None, value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape is not None:
        dtype = str(getattr(value, "dtype", "frame")).removeprefix("torch.")
        text = f"{dtype} {tuple(shape)}"
    elif isinstance(value, list):
        text = f"{len(value)} texts"
    else:
        text = type(value).__name__
    return text if name is None else f"{name}={text}"
