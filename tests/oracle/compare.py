"""A run of a draw, held against the reference."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from dask_infer import OutputError, Towers
from dask_infer.model.towers import OPTIONS
from tests.oracle import reference
from tests.oracle.requests import FUNCTIONS, RESOURCES, Draw, Run

Compute = Callable[[Any, str], Any]

#: How a layout is refused: by the model, the argument or the column that is at fault.
REFUSAL = re.compile(
    r'CannotSplit: .*model ".+" cannot be split: '
    r'|ValueError: .*model ".+" has \d+ blocks? .* pass at most stages='
    r"|ValueError: .*method='\w+': only the model's own call can be split"
    r'|CannotTrace: .*column ".+" .*is known only once'
)


class Disagreement(AssertionError):
    """What the library returned is not what one row alone gives."""


def check(draw: Draw, compute: Compute | None = None, most: int | None = None) -> None:
    """Run a draw in all its ways, or in as many as `most`.

    Raises
    ------
    Disagreement
        Where values, dtypes, index, missing rows or error classes differ.
    """
    expected = reference.rows(draw)
    for run in draw.runs[:most]:
        try:
            _check(draw, run, expected, compute or _compute)
        except Disagreement as error:
            raise Disagreement(f"{error}\n{run}\nof {show(draw)}") from error.__cause__


def show(draw: Draw) -> str:
    """Return a draw as lines."""
    lines = [f'model "{draw.entry}", {draw.request} {draw.functions or ""}']
    lines += [f"  {'series, ' if draw.series else ''}index {draw.frame.index}"]
    for name, column in draw.frame.columns.items():
        lines.append(f"  {name}: {column.holds} as {column.dtype} {column.values}")
    return "\n".join(lines)


def _check(draw: Draw, run: Run, expected: list[Any], compute: Compute) -> None:
    classes = reference.errors(draw, run, expected)
    refused = reference.refused(draw, run)
    try:
        source, meta, result = _run(draw, run, compute)
    except Exception as error:
        if refused is not False and REFUSAL.search(f"{type(error).__name__}: {error}"):
            return
        # Threads may make one batch of the rows of several partitions.
        joined = (OutputError,) if draw.model.structure else ()
        if not refused and isinstance(error, (*classes, *joined)):
            return
        wanted = " or ".join(c.__name__ for c in classes) or "no error"
        raise Disagreement(
            f"{wanted} expected, got {type(error).__name__}: {error}"
        ) from error
    if refused or classes:
        wanted = [c.__name__ for c in classes] or "a refusal of the layout"
        raise Disagreement(f"{wanted} expected, got\n{result}")
    kept, outputs, failed = reference.frame(draw, source, run, expected)
    if draw.model.structure:
        return  # batches of one row: what comes is not the reference's business
    _same(list(result.columns)[: len(kept.columns)], list(kept.columns), "kept")
    try:
        pd.testing.assert_index_equal(result.index, source.index)
        pd.testing.assert_frame_equal(result[list(kept.columns)], kept)
    except AssertionError as error:
        raise Disagreement(f"index or kept columns differ: {error}") from error
    added = [*outputs, *(["infer_error"] if run.on_error == "quarantine" else [])]
    _same(list(result.columns)[len(kept.columns) :], added, "added")
    for name in result.columns:
        _same(str(result[name].dtype), str(meta[name]), f"promised dtype of {name}")
    for field, name in draw.outputs.items():
        _dtype(result[name], draw.model.outputs[field], run)
        # Of a batch whose rows belong together all are missing where one fails.
        whole = draw.request.get("row_wise") is False and failed.any()
        excused = result[name].isna().to_numpy() if whole else None
        _values(result[name], outputs[name], excused, _tolerance(draw, run))
    _memory(result, list(outputs))
    if run.on_error == "quarantine":
        errors = result["infer_error"].notna().to_numpy()
        if draw.request.get("row_wise") is False:
            errors = errors & failed
        _same(errors.tolist(), failed.tolist(), "rows in infer_error")


def _run(draw: Draw, run: Run, compute: Compute) -> tuple[Any, Any, pd.DataFrame]:
    ddf = draw.frame.dask(run.cut)
    request = dict(draw.request)
    request |= {name: FUNCTIONS[f] for name, f in draw.functions.items()}
    request |= {"batch_size": run.batch_size, "on_error": run.on_error}
    request |= {"parallel": run.parallel}
    if run.resources:
        request["resources"] = RESOURCES
    target = ddf[draw.reads[0][0]] if draw.series else ddf
    model = draw.model.make()
    if run.towers:
        model, request = _as_tower(model, request, target, [*draw.outputs.values()])
    predicted = target.infer.predict(model, **request)
    result = compute(predicted, run.scheduler)
    if isinstance(result, pd.Series):
        meta = {predicted.name: predicted.dtype}
        result = result.to_frame()
    else:
        meta = predicted.dtypes
    source = ddf.compute(scheduler="sync")
    return source[[draw.reads[0][0]]] if draw.series else source, meta, result


def _as_tower(
    model: Any, request: dict[str, Any], target: Any, outputs: list[str]
) -> tuple[Towers, dict[str, Any]]:
    """Return the call of `Towers` that gives what a call of one model gives."""
    whole = dict(request)
    columns = whole.pop("columns", getattr(target, "name", None))
    options = {name: whole.pop(name) for name in OPTIONS & whole.keys()}
    names = {_in_tower(name): name for name in outputs}
    return Towers({"t": (model, columns, options)}), {**whole, "output": names}


def _in_tower(name: str) -> str:
    """Return the name of an output among those of all towers."""
    return "t" if name == "prediction" else f"t_{name.removeprefix('prediction_')}"


def _tolerance(draw: Draw, run: Run) -> float:
    """Return how far values may be off.

    Rows alone in stages add up nothing in another order: what is left is that torch
    chooses a kernel by where in memory the weights begin.
    """
    layout, tolerance = run.layout, draw.model.tolerance
    in_stages = layout.stages != 1 and layout.shards == 1
    alone = in_stages and run.largest == 1 and tolerance <= 1e-5
    return 1e-6 if alone else tolerance


def _compute(collection: Any, scheduler: str) -> Any:
    return collection.compute(scheduler=scheduler)


def _same(got: Any, expected: Any, what: str) -> None:
    if got != expected:
        raise Disagreement(f"{what}: got {got}, expected {expected}")


def _dtype(series: pd.Series[Any], out: Any, run: Run) -> None:
    if out.ndim:
        return
    expected = promised(out.dtype, nullable=run.on_error != "raise")
    right = series.dtype == expected
    if out.dtype == "string":
        right = isinstance(series.dtype, pd.StringDtype)
    if not right:
        raise Disagreement(f"dtype {series.dtype}, expected {expected}")


def promised(dtype: Any, nullable: bool) -> Any:
    """Return the dtype of a column: integers and booleans may have to be nullable."""
    known = pd.api.types.pandas_dtype(dtype)
    if nullable and isinstance(known, np.dtype) and known.kind in "iub":
        return pd.Series([], dtype=known).convert_dtypes().dtype
    return known


def _values(
    series: pd.Series[Any], expected: list[Any], excused: Any, tolerance: float
) -> None:
    got = list(series)
    if len(got) != len(expected):
        raise Disagreement(f"{len(got)} rows, expected {len(expected)}")
    for place, (one, other) in enumerate(zip(got, expected, strict=True)):
        if excused is not None and excused[place]:
            continue
        if not alike(one, other, tolerance):
            raise Disagreement(
                f'row {place} of "{series.name}": got {one!r}, expected {other!r}\n'
                f"all: got {got}, expected {expected}"
            )


def alike(one: Any, other: Any, tolerance: float) -> bool:
    """Whether a value of the result is what the reference has."""
    if isinstance(other, list) and len(other) == 1 and np.ndim(one) == 0:
        return alike(one, other[0], tolerance)  # (n, 1) is one number a row
    if missing(one) or missing(other):
        return missing(one) and missing(other)
    if isinstance(other, dict):
        return (
            isinstance(one, dict)
            and one.keys() == other.keys()
            and all(alike(one[key], other[key], tolerance) for key in other)
        )
    if isinstance(other, list | tuple | np.ndarray):
        if not isinstance(one, list | tuple | np.ndarray) or len(one) != len(other):
            return False
        return all(map(lambda a, b: alike(a, b, tolerance), one, other))
    if isinstance(other, float | np.floating):
        return bool(np.isclose(float(one), other, rtol=tolerance, atol=tolerance))
    return bool(one == other)


def missing(value: Any) -> bool:
    """Whether a value is missing, or a list of nothing but NaN is."""
    return pd.api.types.is_scalar(value) and bool(pd.isna(value))


def _memory(result: pd.DataFrame, names: list[str]) -> None:
    """Refuse two outputs in the same memory."""
    arrays = [result[name].to_numpy() for name in names if _plain(result[name])]
    for place, one in enumerate(arrays):
        for other in arrays[place + 1 :]:
            if len(one) and np.shares_memory(one, other):
                raise Disagreement("two outputs share their memory")


def _plain(series: pd.Series[Any]) -> bool:
    return isinstance(series.dtype, np.dtype) and series.dtype.kind in "iuf"
