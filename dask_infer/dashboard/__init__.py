"""The scheduler's side of seeing what runs: sums, a dashboard page, Prometheus.

It comes with the first prediction. As a preload it is there before that::

    dask scheduler --preload dask_infer.dashboard
"""

from __future__ import annotations

from typing import Any


def dask_setup(server: Any) -> None:
    """Add the plugin to a scheduler that preloads this package."""
    from distributed import Scheduler

    from dask_infer.dashboard.watch import Watch

    if isinstance(server, Scheduler):
        # The scheduler starts the plugins of its preloads itself.
        server.add_plugin(Watch(), idempotent=True)
