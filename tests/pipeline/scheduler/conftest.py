"""Coordinators that look at their workers often, so that tests take milliseconds."""

import pytest

from dask_infer.pipeline.scheduler import coordinator, placer


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "POLL_SECONDS", 0.002)
    monkeypatch.setattr(placer, "POLL_SECONDS", 0.002)
