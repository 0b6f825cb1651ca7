"""A case of the zoo, and what became of it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd

from dask_infer import InputError

#: Right with columns inferred, right with ``meta=``, refused by the call, wrong, and
#: failed only once it ran.
OUTCOMES = ("inferred", "meta", "refused", "wrong", "late")


@dataclass(frozen=True)
class Column:
    """One column that is right: its values, one a row."""

    #: None where the result's first name does not matter.
    name: str | None
    values: Sequence[Any]


@dataclass(frozen=True)
class Trial:
    """A model, rows, how it is called, and what is right."""

    model: Any
    frame: pd.DataFrame
    call: dict[str, Any]
    expected: Callable[[], list[Column]]
    rtol: float = 1e-4
    atol: float = 1e-5
    #: How many partitions; rows of one partition are a batch where not row-wise.
    partitions: int = 3


@dataclass(frozen=True)
class Case:
    """What is tried; `trial` builds it when its turn comes."""

    name: str
    group: str
    trial: Callable[[], Trial]
    #: What a true refusal says, as a pattern; None where there must be none.
    refusal: str | None = None
    #: Why `meta=` is needed, as a pattern; None where it must not be.
    needs_meta: str | None = None


@dataclass
class Result:
    """The outcome of one case."""

    name: str
    group: str
    outcome: str
    detail: str = ""
    seconds: float = field(default=0.0, repr=False)
    #: Why `meta=` was needed or the call refused, where it is true.
    reason: str = ""


def run(cases: Iterable[Case]) -> list[Result]:
    """Judge each case; "broken" is one of which the zoo itself knows no answer."""
    return [judge(case) for case in cases]


def judge(case: Case) -> Result:
    """Build, call, compute and compare."""
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # models' own; the library's have tests
        try:
            trial = case.trial()
            right = trial.expected()
        except Exception as error:
            outcome, detail = "broken", f"{type(error).__name__}: {error}"
        else:
            outcome, detail = _outcome(trial, right)
    seconds = time.process_time() - start
    return Result(case.name, case.group, outcome, detail, seconds)


def _outcome(trial: Trial, right: list[Column]) -> tuple[str, str]:
    outcome, said = "inferred", ""
    with dask.config.set({"dataframe.convert-string": False}):
        ddf = dd.from_pandas(trial.frame, npartitions=trial.partitions)
    try:
        pred = ddf.infer.predict(trial.model, keep=False, **trial.call)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        if "pass meta=" not in said:
            return "refused", said
        outcome = "meta"
        try:
            meta = meta_of(right)
            pred = ddf.infer.predict(trial.model, keep=False, meta=meta, **trial.call)
        except Exception as error:
            return "late", f"with meta={meta}: {type(error).__name__}: {error}"
    try:
        got = pred.compute(scheduler="sync")
    except InputError as error:  # what only the data tell, by row
        return "refused", f"InputError: {error}"
    except Exception as error:
        return "late", f"{type(error).__name__}: {error} | {said}"
    if difference := compare(got, pred, right, trial):
        return "wrong", difference
    return outcome, said


def meta_of(columns: list[Column]) -> dict[str, Any]:
    """Declare columns as their right values are."""
    names = [c.name or f"prediction_{n}" for n, c in enumerate(columns)]
    if len(columns) == 1 and columns[0].name is None:
        names = ["prediction"]
    return {n: _declared(c.values) for n, c in zip(names, columns, strict=True)}


def _declared(values: Sequence[Any]) -> Any:
    arrays = [np.asarray(value) for value in values]
    if any(array.ndim for array in arrays):
        return "object"
    return "string" if arrays[0].dtype.kind in "UO" else arrays[0].dtype.name


def compare(
    got: pd.DataFrame, pred: dd.DataFrame, right: list[Column], trial: Trial
) -> str:
    """Say what differs; nothing where all is right."""
    if isinstance(got, pd.Series):
        got = got.to_frame()
    if list(got.dtypes.astype(str)) != list(pred._meta.dtypes.astype(str)):
        return f"dtypes {dict(got.dtypes)} were promised as {dict(pred._meta.dtypes)}"
    if not got.index.equals(trial.frame.index):
        return f"index {list(got.index)}"
    names = [column.name for column in right]
    if len(names) != got.shape[1]:
        return f"columns {list(got.columns)} instead of {names}"
    if None not in names and list(got.columns) != names:
        return f"columns {list(got.columns)} instead of {names}"
    for place, column in enumerate(right):
        for row, value in enumerate(column.values):
            given = got.iloc[row, place]
            if said := _differs(given, value, trial):
                return f"column {got.columns[place]}, row {row}: {said}"
    return ""


def _differs(given: Any, value: Any, trial: Trial) -> str:
    given, value = np.asarray(given), np.asarray(value)
    if given.dtype.kind == "O" and given.ndim:
        given = np.asarray(given.tolist())
    if value.shape != given.shape:
        return f"shape {given.shape} instead of {value.shape}"
    if value.dtype.kind in "UOSb":
        same = bool((given.astype(str) == value.astype(str)).all())
        return "" if same else f"{given} instead of {value}"
    wide = "complex128" if value.dtype.kind == "c" else "float64"
    given, value = given.astype(wide), value.astype(wide)
    if np.allclose(given, value, rtol=trial.rtol, atol=trial.atol, equal_nan=True):
        return ""
    off = np.nanmax(np.abs(given - value))
    return f"off by {off:.2g}: {given.ravel()[:4]} instead of {value.ravel()[:4]}"
