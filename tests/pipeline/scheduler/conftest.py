"""Coordinators that look and inform often, so that tests take milliseconds."""

import pytest

from dask_infer.pipeline.scheduler import coordinator, group, placer


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "POLL_SECONDS", 0.002)
    monkeypatch.setattr(placer, "POLL_SECONDS", 0.002)
    monkeypatch.setattr(group, "INTERVAL", (0.0, 0.0))
    monkeypatch.setattr(group, "LOSS_INTERVAL", (0.0, 0.0))
