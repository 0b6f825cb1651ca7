"""How columns become what the model reads, and one argument of its call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dask_infer.batch.inputs.batch import Batch
from dask_infer.batch.tensor.rows import Array, Positions
from dask_infer.spec import Argument
from dask_infer.spec.model_spec import Interface
from dask_infer.spec.token_rules import TokenRules


@dataclass(frozen=True)
class EncodeOptions:
    """How columns become what the model reads."""

    #: What the model wants: tensors, NumPy arrays or a pandas frame.
    interface: Interface
    #: Dtype of floating inputs.
    floating: torch.dtype = field(default_factory=torch.get_default_dtype)
    #: A Hugging Face tokenizer, or a callable that takes a list of str and returns a
    #: dict; None where no text is tokenized.
    tokenizer: Callable[..., Any] | None = None
    #: How the model takes tokens. Of the tokenizer's outputs only what it accepts is
    #: passed, and lists of integers of any length are only padded for a model that
    #: names an ``attention_mask``.
    rules: TokenRules = field(default_factory=TokenRules)
    #: Names and dtypes of the arguments, in order, of a model that casts them; empty
    #: where they are not known.
    dtypes: Sequence[tuple[str, str]] = ()

    def dtype(self, argument: Argument) -> torch.dtype | None:
        """Return the dtype an argument is cast to; None leaves it to its values."""
        name = argument.dtype
        if name is None and argument.stacked and self.interface == "tensor":
            # The client may not have known that the model reads tensors: a factory.
            name = "floating"
        if name is None or name == "floating":
            return None if name is None else self.floating
        dtype: torch.dtype = getattr(torch, name)
        return dtype

    def wrap(self, block: Array, dtype: torch.dtype | None) -> Any:
        """Return a block in memory of its own as the model reads it."""
        if self.interface != "tensor":
            return block
        tensor = torch.from_numpy(block)
        return tensor if dtype is None else tensor.to(dtype)


class ArgumentReader:
    """One argument of the model, whose columns are opened once for a frame."""

    #: What a row looks like.
    signature: object = None
    #: Bytes of one row's tensors; 0 where they are not known beforehand.
    bytes_per_row: int = 0
    #: Tokens of each row, to plan with; None where rows have no length.
    lengths: Array | None = None
    #: Whether the model is given an attention mask, as far as is known.
    masked: bool = True
    #: Texts truncated so far.
    truncated: int = 0

    def add_to(self, batch: Batch, positions: Positions) -> None:
        """Add the argument's values of these rows, in memory of their own."""
        raise NotImplementedError
