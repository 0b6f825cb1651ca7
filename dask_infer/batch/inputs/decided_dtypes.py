"""Inputs with the dtypes that the model itself decided, once it was asked."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import pandas as pd

from dask_infer.batch.inputs.column_types import number_type_of
from dask_infer.spec import Argument, ArgumentKey, Inputs


def all_integers(meta: pd.DataFrame, argument: Argument) -> bool:
    """Whether every column of `argument` holds integers, as far as dtypes show."""
    return all(number_type_of(meta[c].dtype) == "integer" for c in argument.columns)


def with_integers(
    inputs: Inputs, meta: pd.DataFrame, integers: bool | Collection[ArgumentKey]
) -> Inputs:
    """Return `inputs` with stacked integer columns as "int64", or as "floating".

    `integers` says for all of them, or names the arguments that go in as "int64" by
    place or keyword.
    """
    dtypes = {}
    for place, argument in enumerate(inputs.arguments):
        decided = argument.stacked and argument.dtype in ("int64", "floating")
        if decided and all_integers(meta, argument):
            key = place if argument.keyword is None else argument.keyword
            whole = integers if isinstance(integers, bool) else key in integers
            dtypes[place] = "int64" if whole else "floating"
    return with_lists(inputs, dtypes)


def with_lists(inputs: Inputs, dtypes: Mapping[int, str]) -> Inputs:
    """Return `inputs` with the dtypes of lists that the model was asked about.

    `dtypes` has them by the place of the argument.
    """
    arguments = [
        replace(argument, dtype=dtypes.get(place, argument.dtype))
        for place, argument in enumerate(inputs.arguments)
    ]
    return replace(inputs, arguments=tuple(arguments))
