"""Rows of what crosses a cut."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dask_infer.model.split.steps import Value
from dask_infer.run.sweep.carry_rows import row_axes, take_rows


def chain(**values: Value | None) -> Any:
    known = {name: value for name, value in values.items() if value}
    return SimpleNamespace(values=known, cut_names=lambda place: tuple(values))


def test_the_axis_of_rows_is_found_by_its_size() -> None:
    made = chain(
        x=Value(torch.float32, ("rows", "tokens", 8)),
        turned=Value(torch.float32, ("tokens", "rows")),
        seven=Value(torch.float32, (7, "tokens")),
        tokens=Value(None, ("tokens",)),
    )
    expected = {"x": 0, "turned": 1, "seven": None, "tokens": None}
    assert row_axes(made, 0) == expected


@pytest.mark.parametrize(
    "value",
    [
        None,
        Value(None, ("rows",)),  # a number that counts the rows
        Value(torch.float32, ("rows * 4", 8)),
        Value(torch.float32, ("rows", "rows")),
        Value(torch.float32, ("rows * tokens",)),
    ],
)
def test_what_cannot_be_cut_by_rows_is_not(value: Value | None) -> None:
    assert row_axes(chain(x=value), 0) is None


def test_rows_are_taken() -> None:
    values = {"x": torch.arange(12).reshape(6, 2), "t": torch.arange(6)[None], "n": 3}
    taken = take_rows(values, {"x": 0, "t": 1, "n": None}, slice(2, 4))
    assert taken["x"].tolist() == [[4, 5], [6, 7]]
    assert taken["t"].tolist() == [[2, 3]]
    assert taken["n"] == 3
    assert taken["x"].untyped_storage().nbytes() == 32
