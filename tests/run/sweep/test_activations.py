"""Activations in memory and in files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dask_infer.errors import PartitionError
from dask_infer.run.sweep.activations import Activations


def values(rows: int = 4) -> dict[str, object]:
    return {
        "x": torch.arange(rows * 3, dtype=torch.float32).reshape(rows, 3),
        "bf16": torch.ones(rows, dtype=torch.bfloat16),
        "mask": torch.tensor([True, False] * rows),
        "scalar": torch.tensor(7),
        "none": torch.empty(0, 3),
        "column": torch.ones(rows, 4)[:, 0],
        "turned": torch.arange(6).reshape(2, 3).T,
        "number": 5,
        "missing": None,
    }


def same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert found[name].dtype == value.dtype
            assert torch.equal(found[name], value)
        else:
            assert found[name] == value


@pytest.mark.parametrize("budget", [0, 10**6])
def test_what_is_kept_comes_back(tmp_path: Path, budget: int) -> None:
    activations = Activations(budget, str(tmp_path))
    stored = [activations.put(values(rows)) for rows in (4, 1, 9)]
    assert [each.file is not None for each in stored] == [budget == 0] * 3
    for rows, each in zip((4, 1, 9), stored, strict=True):
        same(each.load(), values(rows))
        same(each.load(), values(rows))
        each.release()
        each.release()
    assert activations.held == 0
    activations.next_file()


def test_the_budget_is_kept_and_memory_is_used_again() -> None:
    one = {"x": torch.zeros(10)}
    activations = Activations(80, None)
    first, second, third = (activations.put(one) for _ in range(3))
    assert (first.file, second.file) == (None, None)
    assert third.file is not None
    assert activations.held == 80
    first.release()
    assert activations.put(one).file is None
    third.release()
    activations.next_file()


def test_files_have_no_name_and_close_with_their_last_user(tmp_path: Path) -> None:
    activations = Activations(0, str(tmp_path))
    first, second = activations.put(values()), activations.put(values())
    assert not [*tmp_path.iterdir()]
    assert first.file is not None
    file = first.file._file
    activations.next_file()
    first.release()
    same(second.load(), values())
    assert not file.closed
    second.release()
    assert file.closed


def test_a_view_does_not_keep_what_it_is_a_view_of() -> None:
    whole = torch.zeros(100, 50)
    stored = Activations(10**6, None).put({"first": whole[:, 0], "all": whole})
    kept = stored.load()
    assert kept["first"].untyped_storage().nbytes() == 400
    assert kept["all"] is whole


def test_a_disk_that_is_full_is_not_the_fault_of_rows(tmp_path: Path) -> None:
    activations = Activations(0, str(tmp_path))
    stored = activations.put({"x": torch.zeros(1)})
    assert stored.file is not None
    stored.file._file.close()
    stored.file._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    with stored.file._file, pytest.raises(PartitionError, match=r"sweep\.activations"):
        activations.put({"x": torch.zeros(1)})
