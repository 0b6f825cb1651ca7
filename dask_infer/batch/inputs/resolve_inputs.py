"""Columns to arguments: what the user named, checked against their dtypes.

Runs on the client when the call is built, from empty frames; and on the worker for
what `preprocess` returned. Nothing here looks at values or imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pandas as pd

from dask_infer.batch.inputs.column_types import NUMBERS, ColumnType, number_type_of
from dask_infer.batch.inputs.frame_columns import FrameColumns, is_list, quote, quoted
from dask_infer.batch.tensor.rows import Shape
from dask_infer.errors import InputError
from dask_infer.spec import Argument, Fitted, Inputs
from dask_infer.spec.input_spec import Content

NOTHING = "columns= selects no column; name at least one"

#: Dtype of an argument of one column of numbers, or of lists of them.
_DTYPES: dict[ColumnType, str] = {
    "floating": "floating",
    "integer": "int64",
    "bool": "bool",
}


def resolve_inputs(
    meta: pd.DataFrame,
    columns: object,
    *,
    interface_hint: str,
    shapes: Mapping[Any, Any] | None = None,
    schema: Mapping[Any, Shape] | None = None,
    tokenizer: bool = False,
    feature_names: Sequence[Any] | None = None,
    fitted: Fitted | None = None,
    preprocess: bool = False,
) -> Inputs:
    """Turn the user's ``columns=`` into the arguments of the model.

    Parameters
    ----------
    meta
        Empty frame with the columns and dtypes of the data.
    columns
        None, a column, a list of columns, a tuple of these (positional arguments) or a
        dict of these (keyword arguments).
    interface_hint
        What the model reads: ``"tensor"``, ``"numpy"`` or ``"frame"``. Arguments of
        ``"tensor"`` carry the dtype they are cast to, others keep the column's own.
    shapes
        The user's ``shapes=``: shape of one row by column.
    schema
        Shape of one row by column from a file's schema.
    tokenizer
        Text is tokenised.
    feature_names
        Columns an estimator was fitted on.
    fitted
        What an estimator was fitted on besides.
    preprocess
        The user's function sees the columns first, so dtypes are checked on the worker.

    Notes
    -----
    Dtypes of tensors: floating numbers and lists are "floating", the model's own; a
    single column of integers, or lists of integers of any width, are "int64"; a single
    column of booleans, or lists of them, "bool". What is stacked is "floating", until
    `decided_dtypes`. None where only the worker sees it (object columns); it follows
    the same rule then.

    Raises
    ------
    InputError
        Where columns are unknown or named twice, or what they hold cannot become what
        the model reads.
    """
    known = {name: shape for name, shape in (schema or {}).items() if shape}
    frame = FrameColumns(meta, known, preprocess)
    for name, shape in (shapes or {}).items():
        frame.add_shape(name, shape)
    if tokenizer and interface_hint == "frame":
        raise InputError("an estimator reads columns as they are; leave out tokenizer=")
    tokenized = tokenizer and not preprocess
    resolver = _Resolver(frame, interface_hint, tokenized, columns is not None)
    fitted = fitted or Fitted()
    arguments: tuple[Argument, ...]
    if interface_hint == "frame":
        arguments = (resolver.frame_argument(columns, feature_names, fitted),)
    else:
        arguments = resolver.arguments(columns)
    if tokenized:
        arguments = _paired(arguments)
        _check_one_text(arguments)
    seen = dict.fromkeys(name for a in arguments for name in a.columns)
    everything = columns is None and (preprocess or not feature_names)
    names = _names(meta.columns if everything else seen)
    return Inputs(arguments, names, columns is not None, tokenizer, fitted.none)


@dataclass(frozen=True)
class _Resolver:
    """Makes arguments of what ``columns=`` names."""

    frame: FrameColumns
    interface: str
    #: Text columns go through a tokenizer.
    tokenizer: bool
    #: The user named the columns.
    chosen: bool

    def arguments(self, columns: Any) -> tuple[Argument, ...]:
        if columns is None:
            return (self._everything(),)
        elements: list[tuple[str | None, Any]] = [(None, columns)]
        if isinstance(columns, Mapping):
            elements = [(_checked_keyword(key), columns[key]) for key in columns]
        elif isinstance(columns, tuple):
            elements = [(None, element) for element in columns]
        if not elements:
            raise InputError(NOTHING)
        return tuple(self._argument(element, key) for key, element in elements)

    def frame_argument(
        self, columns: object, names_in: Sequence[Any] | None, fitted: Fitted
    ) -> Argument:
        """Return a frame, or the Series of a single name; tuples group nothing."""
        if isinstance(columns, Mapping):
            raise InputError("an estimator reads one frame; pass columns=[...]")
        single = False
        if columns is not None:
            elements = columns if isinstance(columns, tuple) else (columns,)
            single = len(elements) == 1 and not is_list(elements[0])
            names = [name for part in elements for name in self.frame.labels(part)]
        elif names_in is None or len(names_in) == 0:
            names = list(self.frame.meta.columns)
        elif self.frame.deferred:
            names = list(names_in)
        else:
            needs = "the estimator needs"
            names = [self.frame.check_known(name, needs) for name in names_in]
        _check_selection(names)
        series = single and not fitted.table and not names_in
        if fitted.texts and not series and not self.frame.deferred:
            texts = [n for n in names if self.frame.kind(n) in ("text", "object")]
            name = quote(texts[0]) if len(texts) == 1 else "as one name"
            raise InputError(
                "the estimator reads one text a row, and of a frame it would read the "
                f"names of the columns; pass columns={name}"
            )
        if fitted.table and names_in is None and not self.frame.deferred:
            for name in names:
                if self.frame.content(name)[0] == "list":
                    raise InputError(
                        f"column {quote(name)} holds lists, and the estimator was "
                        "fitted on an array; pass preprocess=lambda frame: "
                        f"frame[{name!r}].infer.to_numpy()"
                    )
        content: Content = "text" if fitted.texts else "object"
        return Argument(_names(names), None, not series, content, None, None)

    def _everything(self) -> Argument:
        names = list(self.frame.meta.columns)
        _check_selection(names)
        if len(names) == 1 and self.frame.kind(names[0]) not in NUMBERS:
            return self._single(names[0], None)
        return self._stacked(names, None)

    def _argument(self, element: object, keyword: str | None) -> Argument:
        names = self.frame.labels(element)
        if not is_list(element):
            return self._single(names[0], keyword)
        _check_selection(names)
        if len(names) == 1 and self.frame.kind(names[0]) in ("text", "bytes"):
            return self._single(names[0], keyword)
        return self._stacked(names, keyword)

    def _stacked(self, names: list[Any], keyword: str | None) -> Argument:
        for name in names:
            if not self.frame.deferred:
                self.frame.check_stackable(
                    name, self.interface, tokenizer=self.tokenizer
                )
            self._check_tensor(name)
        if self.interface == "numpy" and not self.frame.deferred:
            _check_one_dtype(names, [self.frame.meta[name].dtype for name in names])
        unknown = any(self.frame.kind(name) not in NUMBERS for name in names)
        dtype = "floating" if self.interface == "tensor" else None
        content: Content = "object" if unknown else "number"
        return Argument(_names(names), keyword, True, content, (), dtype)

    def _single(self, name: Any, keyword: str | None) -> Argument:
        frame, kind = self.frame, self.frame.kind(name)
        # With a tokenizer, and no column of text, the objects must be the text.
        objects = kind == "object" and self.tokenizer and not frame.is_listed(name)
        text = kind == "text" or objects
        if not (text and self.tokenizer):
            self._check_tensor(name)
        if text:
            return Argument((name,), keyword, False, "text", (), None)
        content, shape = frame.content(name)
        own = number_type_of(frame.meta[name].dtype)
        dtype = _DTYPES.get(own) if self.interface == "tensor" else None
        return Argument((name,), keyword, False, content, shape, dtype)

    def _check_tensor(self, name: Any) -> None:
        if self.interface == "tensor" and not self.frame.deferred:
            self.frame.check_tensor(name, chosen=self.chosen)


def _check_one_dtype(names: Sequence[Any], dtypes: Sequence[Any]) -> None:
    """Refuse columns that NumPy cannot stack, dates beside numbers."""
    if not all(isinstance(dtype, np.dtype) for dtype in dtypes):
        return
    try:
        np.column_stack([np.empty(0, dtype) for dtype in dtypes])
    except (TypeError, ValueError):
        raise cannot_be_stacked(names, dtypes) from None


def cannot_be_stacked(names: Sequence[Any], dtypes: Sequence[Any]) -> InputError:
    """Return the refusal of columns that have no dtype in common."""
    return InputError(
        f"columns of {', '.join(map(str, dtypes))} cannot be stacked into one array; "
        f"pass them as arguments of their own, columns=({quoted(names)}) say"
    )


def _paired(arguments: tuple[Argument, ...]) -> tuple[Argument, ...]:
    """Return two positional arguments of text as one, a pair for the tokenizer."""
    texts = [a for a in arguments if a.content == "text" and a.keyword is None]
    if len(texts) != 2:
        return arguments
    first, second = texts
    pair = replace(first, columns=(*first.columns, *second.columns))
    rest = (pair if a is first else a for a in arguments if a is not second)
    return tuple(rest)


def _check_one_text(arguments: Iterable[Argument]) -> None:
    texts = [argument for argument in arguments if argument.content == "text"]
    if not texts:
        raise InputError(
            "tokenizer= was given, but no column of columns= holds text; pass the text "
            'column, columns="note" say, or leave out tokenizer='
        )
    if len(texts) > 1:
        names = quoted([argument.columns[0] for argument in texts])
        raise InputError(
            f"tokenizer= reads one column of text or a pair, and columns= names "
            f'{names}; join them into one column, or pass a pair as columns=("a", "b")'
        )


def _check_selection(names: Sequence[Any]) -> None:
    if not names:
        raise InputError(NOTHING)
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"columns= names {quote(name)} twice in one list")


def _checked_keyword(keyword: object) -> str:
    if not isinstance(keyword, str) or not keyword.isidentifier():
        raise InputError(
            f"columns={{{keyword!r}: ...}}: keys are names of the model's arguments"
        )
    return keyword


def _names(labels: Iterable[Any]) -> tuple[str, ...]:
    """Labels as they are: they may be numbers, though nearly all are words."""
    return cast("tuple[str, ...]", tuple(labels))
