"""Columns to arguments: what the user named, checked against what dtypes tell.

Runs on the client when the call is built, from empty frames; and on the worker for
what `preprocess` returned. Nothing here looks at values or imports torch.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import pandas as pd

from dask_infer.batch.inputs.column_types import (
    CONVERTED,
    NUMBERS,
    REMEDIES,
    ColumnType,
    column_type_of,
    number_type_of,
)
from dask_infer.batch.tensor.lists import row_shape, value_dtype
from dask_infer.errors import InputError
from dask_infer.spec import Argument, Fitted, Inputs
from dask_infer.spec.input_spec import Content

Shape = tuple[int | None, ...]

#: Columns listed in a message before "...".
LISTED = 20

STACKED = "a list of columns is stacked into one tensor of numbers"


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
        Shape of one row by column as a file's schema tells it.
    tokenizer
        Text is tokenised.
    feature_names
        Columns an estimator was fitted on.
    fitted
        What an estimator was fitted on besides.
    preprocess
        The user's function sees the columns first, so dtypes are judged on the worker.

    Notes
    -----
    Dtypes of tensors: floating numbers and lists are "floating", the model's own; a
    single column of integers, or lists of integers of any width, are "int64"; a single
    column of booleans, or lists of them, "bool". What is stacked is "floating", until
    `with_integers`. None where only the worker can tell (object columns); it follows
    the same rule then.

    Raises
    ------
    InputError
        Where columns are unknown or named twice, or what they hold cannot become what
        the model reads.
    """
    rules = _Rules(
        meta,
        interface_hint,
        {name: shape for name, shape in (schema or {}).items() if shape},
        tokenizer and not preprocess,
        preprocess,
        columns is not None,
    )
    rules.check_labels()
    rules.shapes.update(rules.checked_shapes(shapes or {}))
    if tokenizer and interface_hint == "frame":
        raise InputError("an estimator reads columns as they are; leave out tokenizer=")
    arguments: tuple[Argument, ...]
    if interface_hint == "frame":
        fitted = fitted or Fitted()
        arguments = (rules.frame_argument(columns, feature_names, fitted),)
    else:
        arguments = rules.arguments(columns)
    if rules.tokenizer:
        arguments = _paired(arguments)
        _check_one_text(arguments)
    seen = _unique(name for argument in arguments for name in argument.columns)
    everything = columns is None and (preprocess or not feature_names)
    handed = tuple(meta.columns) if everything else seen
    none = fitted is not None and fitted.none
    return Inputs(arguments, _names(handed), columns is not None, tokenizer, none)


def all_integers(meta: pd.DataFrame, argument: Argument) -> bool:
    """Whether every column of `argument` holds integers, as far as dtypes tell."""
    return all(number_type_of(meta[c].dtype) == "integer" for c in argument.columns)


def with_integers(
    inputs: Inputs, meta: pd.DataFrame, integers: bool | Collection[int | str]
) -> Inputs:
    """Return `inputs` with stacked integer columns as "int64", or as "floating".

    `integers` says for all of them, or names the arguments that go in as "int64" by
    place or keyword.
    """

    def changed(place: int, argument: Argument) -> Argument:
        stacked = argument.stacked and argument.dtype in ("int64", "floating")
        if not stacked or not all_integers(meta, argument):
            return argument
        key = place if argument.keyword is None else argument.keyword
        whole = integers if isinstance(integers, bool) else key in integers
        return replace(argument, dtype="int64" if whole else "floating")

    arguments = (changed(*item) for item in enumerate(inputs.arguments))
    return replace(inputs, arguments=tuple(arguments))


def with_lists(inputs: Inputs, dtypes: Mapping[int, str]) -> Inputs:
    """Return `inputs` with the dtypes of lists that the model was asked about.

    `dtypes` has them by the place of the argument.
    """
    arguments = [
        replace(argument, dtype=dtypes.get(place, argument.dtype))
        for place, argument in enumerate(inputs.arguments)
    ]
    return replace(inputs, arguments=tuple(arguments))


def as_columns(inputs: Inputs) -> object:
    """Return the ``columns=`` that resolve to `inputs`."""
    elements = [
        list(argument.columns) if argument.stacked else argument.columns[0]
        for argument in inputs.arguments
    ]
    pairs = [a.columns[1:] for a in inputs.arguments if not a.stacked]
    elements += [name for pair in pairs for name in pair]
    keywords = [argument.keyword for argument in inputs.arguments]
    if any(keyword is not None for keyword in keywords):
        return dict(zip(keywords, elements, strict=True))
    return tuple(elements)


@dataclass
class _Rules:
    """One call's columns and what may become of them."""

    meta: pd.DataFrame
    interface: str
    schema: Mapping[Any, Shape]
    #: Text columns go through a tokenizer.
    tokenizer: bool
    #: Dtypes are judged later.
    deferred: bool
    #: The user named the columns.
    chosen: bool
    shapes: dict[Any, Shape] = field(default_factory=dict)

    def check_labels(self) -> None:
        if self.meta.columns.nlevels > 1:
            raise several_levels(self.meta.columns.nlevels)
        twice = self.meta.columns[self.meta.columns.duplicated()]
        if len(twice):
            raise InputError(f"two columns are named {_quote(twice[0])}; rename one")

    def checked_shapes(self, shapes: Mapping[Any, Any]) -> dict[Any, Shape]:
        return {name: self._checked_shape(name, shapes[name]) for name in shapes}

    def _checked_shape(self, name: Any, told: Any) -> Shape:
        self._check_known(name, "shapes= names")
        sizes: Any = (told,) if _is_size(told) else told
        listed = isinstance(sizes, Sequence) and len(sizes) > 0
        if not listed or not all(map(_is_size, sizes)):
            raise InputError(
                f'shapes={{"{name}": {told!r}}}: pass the shape of one row as positive '
                "whole numbers, (3, 224, 224) say"
            )
        shape = tuple(int(size) for size in sizes)
        if not self.deferred:
            self._check_list(name, shape)
        return shape

    def _check_list(self, name: Any, shape: Shape) -> None:
        kind = column_type_of(self.meta[name].dtype)
        if kind == "text":
            raise InputError(
                f'shapes= gives a row of column "{name}" the shape {shape}, but it '
                f"holds text; {CONVERTED}"
            )
        if kind not in ("list", "object"):
            raise InputError(
                f'shapes= gives a row of column "{name}" the shape {shape}, but it '
                "holds one value a row; leave it out of shapes="
            )
        own = row_shape(self.meta[name].dtype) or self.schema.get(name)
        if own and _numbers_in(own) not in (None, _numbers_in(shape)):
            raise InputError(
                f'shapes= gives a row of column "{name}" the shape {shape}, but its '
                f"rows have the shape {own}; pass one of as many numbers"
            )

    def arguments(self, columns: object) -> tuple[Argument, ...]:
        if columns is None:
            return (self._everything(),)
        if isinstance(columns, Mapping):
            return tuple(
                self._argument(element, _checked_keyword(keyword))
                for keyword, element in _filled(columns).items()
            )
        if isinstance(columns, tuple):
            return tuple(self._argument(element) for element in _filled(columns))
        return (self._argument(columns),)

    def frame_argument(
        self, columns: object, names_in: Sequence[Any] | None, fitted: Fitted
    ) -> Argument:
        """Return a frame, or the Series of a single name; tuples group nothing."""
        if isinstance(columns, Mapping):
            raise InputError("an estimator reads one frame; pass columns=[...]")
        single = False
        if columns is not None:
            elements = columns if isinstance(columns, tuple) else (columns,)
            single = len(elements) == 1 and not _is_list(elements[0])
            names = [name for part in elements for name in self._labels(part)]
        elif names_in is None or len(names_in) == 0:
            names = list(self.meta.columns)
        elif self.deferred:
            names = list(names_in)
        else:
            needs = "the estimator needs"
            names = [self._check_known(name, needs) for name in names_in]
        _check_selection(names)
        series = single and not fitted.table and not names_in
        if fitted.texts and not series and not self.deferred:
            raise InputError(
                "the estimator reads one text a row, and of a frame it would read the "
                f"names of the columns; pass {self._text_column(names)}"
            )
        content: Content = "text" if fitted.texts else "object"
        return Argument(_names(names), None, not series, content, None, None)

    def _text_column(self, names: Sequence[Any]) -> str:
        texts = [name for name in names if self._kind(name) in ("text", "object")]
        return (
            f"columns={_quote(texts[0])}" if len(texts) == 1 else "columns= as one name"
        )

    def _everything(self) -> Argument:
        names = list(self.meta.columns)
        _check_selection(names)
        if len(names) == 1 and self._kind(names[0]) not in NUMBERS:
            return self._single(names[0], None)
        return self._stacked(names, None)

    def _argument(self, element: object, keyword: str | None = None) -> Argument:
        names = self._labels(element)
        if not _is_list(element):
            return self._single(names[0], keyword)
        _check_selection(names)
        if len(names) == 1 and self._kind(names[0]) in ("text", "bytes"):
            return self._single(names[0], keyword)
        return self._stacked(names, keyword)

    def _labels(self, element: object) -> list[Any]:
        """Return the column or the columns that one element of ``columns=`` names."""
        if isinstance(element, set | frozenset | dict | tuple) or element is None:
            raise InputError(
                f"columns=: {element!r} is neither a column nor a list of columns; "
                "pass columns= as a name, a list, or a tuple or dict of these"
            )
        names = list(cast(Any, element)) if _is_list(element) else [element]
        return [self._check_known(name) for name in names]

    def _check_known(self, name: Any, before: str = "columns= names") -> Any:
        try:
            known = name in self.meta.columns
        except TypeError:
            known = False
        if known:
            return name
        labels = list(map(str, self.meta.columns))
        near = difflib.get_close_matches(str(name), labels, n=3, cutoff=0.6)
        guess = f"did you mean {' or '.join(map(_quote, near))}? " if near else ""
        raise InputError(
            f"{before} {_quote(name)}, which is not there; {guess}"
            f"the columns are {_quoted(self.meta.columns)}"
        )

    def _kind(self, name: Any) -> ColumnType:
        return column_type_of(self.meta[name].dtype)

    def _stacked(self, names: list[Any], keyword: str | None) -> Argument:
        if not self.deferred:
            for name in names:
                self._check_stackable(name)
        unknown = any(self._kind(name) not in NUMBERS for name in names)
        dtype = "floating" if self.interface == "tensor" else None
        content: Content = "object" if unknown else "number"
        return Argument(_names(names), keyword, True, content, (), dtype)

    def _check_stackable(self, name: Any) -> None:
        kind = self._kind(name)
        if kind == "list" or name in self.shapes or name in self.schema:
            raise InputError(
                f'{STACKED}, and column "{name}" holds lists; ' + apart(name)
            )
        text = kind in ("text", "bytes")
        if text and (self.tokenizer or self.interface == "numpy"):
            raise InputError(
                f'{STACKED}, and column "{name}" holds {kind}; ' + apart(name)
            )
        if self.interface == "tensor":
            self._check_tensor(name, kind)

    def _check_tensor(self, name: Any, kind: ColumnType) -> None:
        dtype = self.meta[name].dtype
        if kind == "list" and value_dtype(dtype) is None:
            kind = "other"
        if kind not in REMEDIES:
            return
        what, advice = REMEDIES[kind]
        advice = advice.format(_quote(name))
        if not self.chosen and len(self.meta.columns) > 1:
            advice = f"columns=[...] or {advice}"
        if kind == "text":
            advice = f"{advice}; {CONVERTED}"
        raise InputError(f"column {_quote(name)} holds {what}; pass {advice}")

    def _single(self, name: Any, keyword: str | None) -> Argument:
        kind = self._kind(name)
        if kind == "text" or (kind == "object" and self._reads_objects_as_text(name)):
            return self._text(name, keyword)
        if self.interface == "tensor" and not self.deferred:
            self._check_tensor(name, kind)
        content, shape = self._content(name, kind)
        own = number_type_of(self.meta[name].dtype)
        dtype = _DTYPES.get(own) if self.interface == "tensor" else None
        return Argument((name,), keyword, False, content, shape, dtype)

    def _reads_objects_as_text(self, name: Any) -> bool:
        """With a tokenizer, and no column of text, the objects must be the text."""
        listed = name in self.shapes or name in self.schema
        return self.tokenizer and not listed

    def _text(self, name: Any, keyword: str | None) -> Argument:
        bare = self.interface == "tensor" and not self.tokenizer and not self.deferred
        if bare:
            self._check_tensor(name, "text")
        return Argument((name,), keyword, False, "text", (), None)

    def _content(self, name: Any, kind: ColumnType) -> tuple[Content, Shape | None]:
        if kind in NUMBERS:
            return "number", ()
        if kind == "bytes":
            return "bytes", ()
        told = self.shapes.get(name) or self.schema.get(name)
        if kind == "list":
            return "list", self.shapes.get(name) or (
                row_shape(self.meta[name].dtype) or told
            )
        return ("list", told) if told else ("object", None)


_DTYPES: dict[ColumnType, str] = {
    "floating": "floating",
    "integer": "int64",
    "bool": "bool",
}


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
        names = _quoted([argument.columns[0] for argument in texts])
        raise InputError(
            f"tokenizer= reads one column of text or a pair, and columns= names "
            f'{names}; join them into one column, or pass a pair as columns=("a", "b")'
        )


def _check_selection(names: Sequence[Any]) -> None:
    if not names:
        raise InputError("columns= selects no column; name at least one")
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"columns= names {_quote(name)} twice in one list")


def _filled(columns: Any) -> Any:
    if not len(columns):
        raise InputError("columns= selects no column; name at least one")
    return columns


def _checked_keyword(keyword: object) -> str:
    if not isinstance(keyword, str) or not keyword.isidentifier():
        raise InputError(
            f"columns={{{keyword!r}: ...}}: keys are names of the model's arguments"
        )
    return keyword


def _is_list(element: object) -> bool:
    return isinstance(element, list | pd.Index | np.ndarray)


def _is_size(value: object) -> bool:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole and int(cast(int, value)) > 0


def _numbers_in(shape: Shape) -> int | None:
    """Return how many numbers a row has; None where an axis is unknown."""
    return None if None in shape else math.prod(cast("tuple[int, ...]", shape))


def several_levels(count: int) -> InputError:
    """Return the refusal of columns that are named by tuples."""
    return InputError(
        f"the frame's columns have {count} levels; give each one name: ddf.columns = "
        '["_".join(map(str, column)) for column in ddf.columns], say'
    )


def apart(name: object) -> str:
    """Return how to pass a column that cannot be stacked."""
    return f"pass columns={_quote(name)}, or columns=({_quote(name)}, [...])"


def _unique(names: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(names))


def _names(labels: Iterable[Any]) -> tuple[str, ...]:
    """Labels as they are: they may be numbers, though nearly all are words."""
    return cast("tuple[str, ...]", tuple(labels))


def _quote(label: object) -> str:
    return f'"{label}"' if isinstance(label, str) else repr(label)


def _quoted(labels: Iterable[Any]) -> str:
    shown = [_quote(label) for label in labels]
    rest = ["..."] if len(shown) > LISTED else []
    return ", ".join(shown[:LISTED] + rest)
