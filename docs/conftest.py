"""Every Python block of every page is a test; a page's blocks share one namespace."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Any

import dask
import pytest
from sybil import Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.myst import CodeBlockParser

import dask_infer.config  # noqa: F401 - its defaults must outlive what a page sets


@pytest.fixture(scope="module", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run a page in an empty folder, with a content store of its own."""
    place = tmp_path_factory.mktemp("page")
    store = place / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("DASK_INFER__STORE__PATH", str(store))
        with dask.config.set({"infer.store.path": str(store)}):
            yield


def setup(namespace: dict[str, Any]) -> None:
    """Make what a page defines look defined in a script."""
    namespace["__name__"] = "__main__"


def run(example: Example) -> str | None:
    """Run a block and return what went wrong, with its causes.

    Sybil 10.1 shows a failure itself, but trips over errors that have a cause.
    """
    try:
        PythonEvaluator()(example)
    except Exception:
        return traceback.format_exc()
    return None


pytest_collect_file = Sybil(
    parsers=[CodeBlockParser("python", run)],
    patterns=["*.md"],
    excludes=["_generated/*", "_build/*"],
    setup=setup,
    fixtures=["elsewhere"],
).pytest()
