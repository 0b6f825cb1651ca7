"""Which columns become which arguments of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

#: number: one scalar a row. list: one array a row. text, bytes: one object a row.
#: object: unknown until a worker sees it (Dask calls list columns "object").
Content = Literal["number", "list", "text", "bytes", "object"]

#: An argument of a call: the place of a positional one, the keyword of any other.
ArgumentKey = int | str


@dataclass(frozen=True)
class Argument:
    """One argument of the model's call."""

    #: Columns read; one unless `stacked`, or two of text that are a pair.
    columns: tuple[str, ...]
    #: Keyword under which it is passed; None for a positional argument.
    keyword: str | None = None
    #: ``["a", "b"]``: columns side by side, one ``(n, k)`` tensor.
    stacked: bool = False
    content: Content = "number"
    #: Shape of one row of a list column; None where only the worker sees it;
    #: ``()`` for scalars. A leading None is a ragged axis.
    shape: tuple[int | None, ...] | None = ()
    #: Dtype the tensor is cast to: "floating" (that of the model), or a torch dtype's
    #: name such as "int64"; None keeps the column's dtype.
    dtype: str | None = None


@dataclass(frozen=True)
class Undecided:
    """Columns of integers for a model whose code the client did not run.

    The worker runs it on these examples to see whether it reads floats or integers.
    """

    #: One row of each positional argument, and of each keyword argument.
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    #: Place in `Inputs.arguments` of each that is undecided, by its key in the call.
    places: dict[ArgumentKey, int]


@dataclass(frozen=True)
class Inputs:
    """The arguments of the model, in order."""

    arguments: tuple[Argument, ...]
    #: Columns handed to `preprocess` and `postprocess`: those the user named, or all.
    columns: tuple[str, ...]
    #: False where the user left ``columns=None``.
    named: bool = True
    #: Text goes through the tokenizer; its outputs become keyword arguments.
    tokenized: bool = False
    #: Missing text is None for an estimator, not NaN.
    none: bool = False


@dataclass(frozen=True)
class Fitted:
    """What an estimator was fitted on, as far as its attributes say."""

    #: It was a table: a single column, too, goes in as a frame.
    table: bool = False
    #: It was one text a row: only a Series is read by rows.
    texts: bool = False
    #: Missing text was None, not NaN.
    none: bool = False
