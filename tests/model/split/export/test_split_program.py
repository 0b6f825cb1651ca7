"""Exported programs, cut as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dask_infer.errors import ModelLoadError
from dask_infer.model.recognise import recognise
from dask_infer.model.runtime.load_model import load
from dask_infer.model.shapes.trace_errors import Example
from dask_infer.model.split import CannotSplit, load_stage, split
from dask_infer.spec import ModelSpec
from tests.model.split.models import (
    FLOATS,
    TOKENS,
    Masked,
    Raw,
    Returns,
    Skips,
    Tied,
    assert_exact,
)

DYNAMIC = torch.export.Dim.DYNAMIC


def saved(module: Any, place: Path, example: torch.Tensor, axes: int = 1) -> ModelSpec:
    shape = dict.fromkeys(range(axes), DYNAMIC) or None
    with torch.no_grad():
        program = torch.export.export(
            module.eval(), (example,), dynamic_shapes=(shape,), strict=False
        )
    torch.export.save(program, place / "model.pt2")
    return recognise(str(place / "model.pt2")).spec


@pytest.mark.parametrize("module", [Raw(), Skips(), Returns("nested")])
def test_program_is_cut_at_the_modules_it_remembers(module, tmp_path):
    spec = saved(module, tmp_path, torch.randn(5, 8))
    chain = split(spec, None, [FLOATS], {})
    assert len(chain.blocks) >= 2
    for rows in (1, 4):
        assert_exact(spec, chain, torch.randn(rows, 8))


def test_stage_of_a_program_holds_its_own_tensors(tmp_path):
    spec = saved(Tied(), tmp_path, torch.zeros(5, 7, dtype=torch.int64), axes=2)
    chain = split(spec, None, [TOKENS], {})
    assert_exact(spec, chain, torch.randint(20, (3, 4)))
    for start in range(len(chain.blocks)):
        stage = load_stage(spec, chain, start, start + 1)
        assert stage.nbytes == chain.blocks[start].nbytes
    assert load(spec).nbytes == chain.nbytes


def test_user_cuts_of_a_program(tmp_path):
    spec = saved(Skips(), tmp_path, torch.randn(5, 8))
    chain = split(spec, None, [FLOATS], {}, cuts=("layers.2",))
    assert [block.name for block in chain.blocks] == ["inputs", "layers.2"]
    assert_exact(spec, chain, torch.randn(3, 8))
    with pytest.raises(CannotSplit, match=r"did you mean.*layers\.2"):
        split(spec, None, [FLOATS], {}, cuts=("layer.2",))


def test_fixed_sizes_of_a_program_are_refused(tmp_path):
    spec = saved(Skips(), tmp_path, torch.randn(5, 8), axes=0)
    with pytest.raises(CannotSplit, match=r"exactly 5 rows.*dynamic dimension 0"):
        split(spec, None, [FLOATS], {})
    ids = torch.zeros(5, 7, dtype=torch.int64)
    spec = saved(Masked(), tmp_path, ids, axes=1)
    with pytest.raises(CannotSplit, match=r"exactly 7 tokens.*dynamic dimension 1"):
        split(spec, None, [TOKENS], {})


def test_other_arguments_and_dtypes_than_the_export_are_refused(tmp_path):
    spec = saved(Skips(), tmp_path, torch.randn(5, 8))
    with pytest.raises(CannotSplit, match=r"exported for the arguments 0.*give y"):
        split(spec, None, [], {"y": Example("floating", (8,))})
    with pytest.raises(ModelLoadError, match="export it again in bfloat16"):
        split(spec, None, [FLOATS], {}, dtype="bfloat16")
