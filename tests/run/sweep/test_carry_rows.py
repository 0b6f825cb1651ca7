"""Rows of what crosses a cut."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dask_infer.model.split.program import Step, Value
from dask_infer.run.sweep.carry_rows import join_rows, row_axes, take_rows


def chain(*steps: Step, **values: Value | None) -> Any:
    program = SimpleNamespace(
        values={k: v for k, v in values.items() if v}, steps=steps, inputs=()
    )
    return SimpleNamespace(
        program=program,
        cut_names=lambda place: tuple(values),
        blocks=("first", "second"),
        bounds=(0, len(steps), len(steps)),
    )


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
        Value(torch.int64, ("rows",)),  # it may be an order of rows
    ],
)
def test_what_cannot_be_cut_by_rows_is_not(value: Value | None) -> None:
    assert row_axes(chain(x=value), 0) is None


def test_values_after_an_operator_that_moves_rows_are_not_cut() -> None:
    flip = Step("flip", "operator", ("aten", "flip", "default"), ())
    made = chain(flip, x=Value(torch.float32, ("rows", 8)))
    assert row_axes(made, 0) == {"x": 0}  # before it
    assert row_axes(made, 1) is None
    assert row_axes(made, 2) == {"x": 0}  # the outputs


def test_rows_are_taken_and_joined() -> None:
    values = {"x": torch.arange(12).reshape(6, 2), "t": torch.arange(6)[None], "n": 3}
    axes = {"x": 0, "t": 1, "n": None}
    parts = [take_rows(values, axes, np.array(rows)) for rows in ([0, 1], [2, 3, 4, 5])]
    assert parts[0]["x"].tolist() == [[0, 1], [2, 3]]
    assert parts[1]["t"].tolist() == [[2, 3, 4, 5]]
    joined = join_rows(parts, axes)
    assert torch.equal(joined["x"], values["x"])
    assert torch.equal(joined["t"], values["t"])
    assert joined["n"] == 3
