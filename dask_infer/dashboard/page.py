"""The page *Infer* on the scheduler's dashboard, and its parts as single plots."""

from __future__ import annotations

from collections.abc import Sequence
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

    def page(title: str, parts: Sequence[Any], template: Path | None = None) -> Any:
        def show(scheduler: Scheduler, extra: Any, document: Any) -> None:
            document.title = f"Dask: {title}"
            sizing = {} if template else {"sizing_mode": "stretch_both"}
            shown = [part(counters, **sizing) for part in parts]
            text = template.read_text() if template else None
            show_page(document, shown, INTERVAL, text, extra)

        return show

    parts = (Summary, Replicas, Throughput, Time, Windows, Failures)
    pages = {path: page(name, [part]) for path, (name, part) in PLOTS.items()}
    names = {path: name for path, (name, _) in PLOTS.items()}
    pages["/infer"] = page("Infer", parts, TEMPLATE)
    add_dashboard_pages(scheduler, pages, names, "infer")
