"""ModelSource: a model said explicitly."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from dask_infer.model.source import ModelSource


def build(*args, **kwargs):
    return args, kwargs


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (ModelSource.from_path("a.pt2"), "from_path('a.pt2')"),
        (ModelSource.from_path(Path("a.pt"), True), "from_path('a.pt', trust=True)"),
        (ModelSource.from_factory(build), "from_factory(build)"),
        (
            ModelSource.from_factory(build, 1, b="x", weights=Path("w.safetensors")),
            "from_factory(build, 1, b='x', weights='w.safetensors')",
        ),
        (ModelSource.from_estimator(object()), "from_estimator(object)"),
        (ModelSource.from_module(object()), "from_module(object)"),
    ],
    ids=repr,
)
def test_reads_as_it_was_written(source, text):
    assert repr(source) == f"ModelSource.{text}"


def test_holds_what_it_was_given():
    source = ModelSource.from_factory(build, 1, weights="w.safetensors", trust="mine")
    assert (source.args, source.kwargs) == ((1,), {"trust": "mine"})
    assert source.weights == "w.safetensors"
    assert pickle.loads(pickle.dumps(source)) == source


def test_is_frozen():
    with pytest.raises(AttributeError):
        ModelSource.from_path("a.pt").trust = True


def test_making_one_opens_and_imports_nothing():
    code = (
        "import sys; from dask_infer.model.source import ModelSource as M; "
        "M.from_path('nowhere.pt2'); M.from_factory(print); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
