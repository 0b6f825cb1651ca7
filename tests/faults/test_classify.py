"""Whose error it is, by type and message."""

import weakref

import pytest
import torch

from dask_infer import errors
from dask_infer.faults.classify import LONGEST, describe, forget_frames, is_of_no_row

OF_A_ROW = errors.OutputError("300 does not fit")
OF_A_ROW.of_a_row = True


@pytest.mark.parametrize(
    "error",
    [
        ImportError("no module named PIL"),
        ModuleNotFoundError("sklearn"),
        errors.ModelLoadError("gone"),
        errors.PlacementError("no worker"),
        errors.PartitionError("too many threads"),
        errors.OutputError("9 rows for a batch of 10"),
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
    ],
    ids=repr,
)
def test_of_no_row(error):
    assert is_of_no_row(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad"),
        KeyError("x"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        FileNotFoundError("photo.png"),
        errors.InputError("row 7 is ragged"),
        OF_A_ROW,
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
    ids=repr,
)
def test_what_a_row_may_cause(error):
    assert not is_of_no_row(error)


def test_description_has_step_type_and_message():
    assert describe("forward", ValueError("bad")) == "forward: ValueError: bad"
    long = describe("preprocess", ValueError("x" * 10_000))
    assert len(long) == LONGEST
    assert long.endswith("...")


def test_a_kept_error_holds_no_tensor():
    alive = []

    def forward():
        tensor = torch.zeros(10)
        alive.append(weakref.ref(tensor))
        raise ValueError("bad")

    def wrapped():
        try:
            forward()
        except ValueError as error:
            raise KeyError("outer") from error

    try:
        wrapped()
    except KeyError as error:
        kept = error
        forget_frames(error)
    assert alive[0]() is None
    assert isinstance(kept.__cause__, ValueError)
