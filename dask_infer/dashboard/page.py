"""The page *Infer* on the scheduler's dashboard, and its parts as single plots."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from distributed import Scheduler

from dask_infer._dask import add_dashboard_pages, show_page
from dask_infer.dashboard.cluster_counters import ClusterCounters
from dask_infer.dashboard.plots import (
    Failures,
    Replicas,
    Summary,
    Throughput,
    Time,
    Windows,
)

#: Seconds between two updates of an open page.
INTERVAL = 0.5
TEMPLATE = Path(__file__).with_name("infer.html")

#: Single plots, which Dask's menu and the JupyterLab extension list, by their paths.
PLOTS = {
    "/individual-infer-replicas": ("Infer Replicas", Replicas),
    "/individual-infer-rows": ("Infer Rows", Throughput),
    "/individual-infer-time": ("Infer Time", Time),
    "/individual-infer-windows": ("Infer Windows", Windows),
    "/individual-infer-failures": ("Infer Failures", Failures),
}


def add_pages(scheduler: Scheduler, counters: ClusterCounters) -> None:
    """Add the page and the plots; nothing where there is no dashboard."""
    pages = {"/infer": functools.partial(_page, counters)}
    for path, (name, part) in PLOTS.items():
        pages[path] = functools.partial(_plot, counters, name, part)
    names = {path: name for path, (name, _) in PLOTS.items()}
    add_dashboard_pages(scheduler, pages, names, "infer")


def _page(
    counters: ClusterCounters, scheduler: Scheduler, extra: Any, document: Any
) -> None:
    parts = [
        part(counters)
        for part in (Summary, Replicas, Throughput, Time, Windows, Failures)
    ]
    document.title = "Dask: Infer"
    show_page(document, parts, INTERVAL, TEMPLATE.read_text(), extra)


def _plot(
    counters: ClusterCounters,
    name: str,
    part: Any,
    scheduler: Scheduler,
    extra: Any,
    document: Any,
) -> None:
    document.title = f"Dask: {name}"
    shown = [part(counters, sizing_mode="stretch_both")]
    show_page(document, shown, INTERVAL, None, extra)
