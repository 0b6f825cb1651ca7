"""What an ensemble returns, known from what its models return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dask_infer.batch.outputs.parse_meta import OutputValue, parse_meta
from dask_infer.batch.tensor.tensor_dtype import TensorDtype
from dask_infer.errors import OutputError
from dask_infer.model.combine import mean_dtype
from dask_infer.model.towers import Ensemble
from dask_infer.spec import OutputColumn, Outputs, Tower


def combined_outputs(
    how: str, towers: Sequence[Tower], fields: Sequence[str | None]
) -> list[OutputValue]:
    """Return what the combined outputs are.

    Raises
    ------
    OutputError
        If the outputs are unlike, or cannot be combined so.
    """
    first = towers[0].job.outputs.columns
    for tower in towers[1:]:
        others = tower.job.outputs.columns
        alike = len(fields) == 1 or [c.name for c in others] == fields
        if not alike or [c.shape for c in others] != [c.shape for c in first]:
            raise OutputError(
                f'combine="{how}": the models must return alike, and member 0 returns '
                f"{_described(first)}, {tower.name} {_described(others)}; bring them "
                "to one form with postprocess=, or pass a function as combine="
            )
    found = []
    for place, field in enumerate(fields):
        columns = [tower.job.outputs.columns[place] for tower in towers]
        dtype, shape = _combined_column(how, columns)
        found.append(OutputValue(field, dtype, shape))
    return found


def stacked_meta(meta: Sequence[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Return ``meta=`` of stacked outputs as that of one model's: one axis less."""
    return [
        (
            each.key,
            TensorDtype(each.dtype, each.shape[1:]) if each.shape[1:] else each.dtype,
        )
        for each in parse_meta(meta)
    ]


def check_meta(how: str, outputs: Outputs, meta: Sequence[tuple[Any, Any]]) -> None:
    """Compare ``meta=`` with what the models' outputs become.

    Raises
    ------
    OutputError
        If it names another dtype: a mean of whole numbers is no whole number.
    """
    declared = {each.key: _dtype(each) for each in parse_meta(meta)} if meta else {}
    for column in outputs.columns:
        found = _dtype(column)
        dtype = declared.get(column.name, declared.get(None, found))
        if dtype != found:
            raise OutputError(
                f'combine="{how}": "{column.name}" is of {found}, and meta= says '
                f"{dtype}; pass meta={found!r}, or what each model returns in its own "
                'options: (model, columns, {"meta": ...})'
            )


def check_classes(how: str, model: Ensemble, method: str | None) -> None:
    """Compare the classes whose probabilities, or scores, are combined by place.

    Raises
    ------
    OutputError
        If estimators have other classes, or the same ones in another order.
    """
    known: list[Any] = []
    for member in model.members:
        options = {"method": method, **member.options}
        scores = options["method"] in _BY_CLASS and not options.get("postprocess")
        classes = getattr(member.model, "classes_", None) if scores else None
        if classes is not None:
            known.append(np.asarray(classes, dtype=object).tolist())
    for other in known[1:]:
        if other != known[0]:
            raise OutputError(
                f'combine="{how}": the models have other classes, {known[0]} and '
                f"{other}, and their outputs would be combined by place; bring them "
                "to one form with postprocess= of each model, or pass a function as "
                "combine="
            )


#: Methods that return a number for each class.
_BY_CLASS = ("predict_proba", "predict_log_proba", "decision_function")


def _combined_column(how: str, columns: Sequence[OutputColumn]) -> tuple[Any, Any]:
    """Return dtype and row shape of one combined output."""
    dtypes = [np.dtype(_numpy_name(column.dtype)) for column in columns]
    kinds = {dtype.kind for dtype in dtypes}
    shape = columns[0].shape
    numbers = kinds <= set("fiub")
    if how == "mean" and numbers:
        return mean_dtype(dtypes).name, shape
    if how == "stack" and numbers and None not in shape:
        return np.result_type(*dtypes).name, (len(columns), *shape)
    if how == "vote" and len(kinds) == 1 and kinds <= set("iubO") and None not in shape:
        whole = numbers and np.result_type(*dtypes).name
        return whole or columns[0].dtype, shape
    advice = {
        "mean": 'labels are combined by "vote"',
        "vote": 'labels are whole numbers or text, and the rest is combined by "mean"',
        "stack": "only arrays of numbers of one shape are stacked",
    }
    raise OutputError(
        f'combine="{how}": the models return {_described(columns)}; {advice[how]}, or '
        "pass a function as combine="
    )


def _numpy_name(dtype: Any) -> Any:
    return dtype if isinstance(dtype, str) and dtype != "string" else "object"


def _dtype(value: OutputColumn | OutputValue) -> str:
    """Return the dtype of a column as ``meta=`` may name it."""
    whole = f"tensor[{value.dtype}, {value.shape}]"
    return whole if value.shape else str(value.dtype)


def _described(columns: Sequence[OutputColumn]) -> str:
    return ", ".join(
        f'"{column.name}" of {column.dtype}'
        + (f" {column.shape}" if column.shape else "")
        for column in columns
    )
