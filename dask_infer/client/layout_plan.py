"""The layouts of a job as `explain` compares them, shown as text and HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd

from dask_infer.plan.layouts.alternative import Alternative
from dask_infer.plan.layouts.job_facts import Fact
from dask_infer.plan.units import in_bytes, in_seconds
from dask_infer.spec import Layout
from dask_infer.views.view import View, Viewed

COLUMNS = {
    "layout": "str",
    "replicas": "int64",
    "workers": "int64",
    "memory": "int64",
    "room": "float64",
    "load": "float64",
    "run": "float64",
    "total": "float64",
    "chosen": "bool",
    "refused": "str",
}
SOURCES = ("measured", "projected", "assumed")


class Plan(Viewed):
    """What each layout of a model is projected to take, and which one to choose.

    Attributes
    ----------
    layout
        The `Layout` that is chosen, to be passed as ``parallel=``; None where the model
        fits nowhere.
    resources
        Dask resources that go with it, to be passed as ``resources=``; None where there
        are none.
    table
        A pandas DataFrame with a row for each layout: `layout`, `replicas`, `workers`
        that hold weights, `memory` and `room` (bytes on the worker that is filled
        most, and what a layout may take there), `load`, `run` and `total` (seconds),
        `chosen`, and `refused`: why it cannot be, or empty.
    facts
        What it was computed from: `name`, `value`, and `source`, which is "measured",
        "projected" or "assumed".
    notes
        Further advice, a line each.
    """

    def __init__(
        self,
        model: str,
        found: Sequence[Alternative],
        chosen: Alternative | None,
        facts: Sequence[Fact],
        notes: Sequence[str] = (),
    ) -> None:
        self.model = model
        self.facts, self.notes = list(facts), list(notes)
        self._found, self._chosen = list(found), chosen

    @property
    def layout(self) -> Layout | None:
        """The layout that is chosen; None where the model fits nowhere."""
        return None if self._chosen is None else self._chosen.layout

    @property
    def resources(self) -> dict[str, float] | None:
        """Dask resources that go with the layout; None where there are none."""
        return dict(self._chosen.resources) or None if self._chosen else None

    @property
    def table(self) -> pd.DataFrame:
        """A row for each layout; bytes and seconds, all projected."""
        rows = [
            {name: getattr(each, name, None) for name in COLUMNS}
            | {"layout": each.name, "chosen": each is self._chosen}
            for each in self._found
        ]
        table = pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)
        refused = table["refused"] != ""
        numbers = ["room", "load", "run", "total"]
        table.loc[refused, numbers] = float("nan")
        return table

    def __repr__(self) -> str:
        lines = [self._cells(each) for each in self._found]
        whole = [HEAD, *(cells for cells in lines if len(cells) == len(HEAD))]
        widths = [max(map(len, column)) for column in zip(*whole, strict=True)]
        widths[0] = max(len(cells[0]) for cells in [HEAD, *lines])
        shown = [_line(cells, widths) for cells in [HEAD, *lines]]
        return "\n".join([f'model "{self.model}"', *shown, *self._sentences()])

    def views(self) -> list[View]:
        """Return it as a table."""
        lines: dict[str, str | dict[str, str]] = {}
        for each in self._found:
            name, *cells = self._cells(each)
            named = dict(zip(HEAD[1:], cells, strict=False))
            lines[name] = each.refused or named
        return [View(f"Plan of {self.model}", lines, self._sentences())]

    def _sentences(self) -> tuple[str, ...]:
        said = [self._summary(), *self.notes]
        for source in SOURCES:
            facts = [f"{f.name} {f.value}" for f in self.facts if f.source == source]
            said += [f"{source}: {', '.join(facts)}"] if facts else []
        return tuple(said)

    def _summary(self) -> str:
        if self._chosen is None:
            return "No layout fits."
        resources = f", resources={self.resources}" if self.resources else ""
        return f"> parallel={self._chosen.layout.short()}{resources}"

    def _cells(self, each: Alternative) -> list[str]:
        name = f"{'>' if each is self._chosen else ' '} {each.name}"
        if each.refused:
            return [name, each.refused]
        room = "" if each.room == float("inf") else f" of {in_bytes(each.room)}"
        return [
            name,
            str(each.replicas),
            str(each.workers),
            f"{in_bytes(each.memory)}{room}",
            in_seconds(each.load),
            in_seconds(each.run),
            in_seconds(each.total),
        ]


class TowersPlan(Plan):
    """What the layouts of several models on the same rows are projected to take.

    Attributes
    ----------
    towers
        A `Plan` for each tower or member by its name, made with the others beside it:
        whole replicas share the memory of a process, models on workers of their own
        divide these. `layout` and `resources` are those of each, and None here.
    table
        As of `Plan`, with the name in `tower`.
    notes
        The layouts that the call names itself.
    """

    def __init__(
        self,
        model: str,
        towers: Mapping[str, Plan],
        seconds: float,
        notes: Sequence[str] = (),
    ) -> None:
        facts = [fact for plan in towers.values() for fact in plan.facts]
        super().__init__(model, [], None, facts, notes)
        self.towers, self._seconds = dict(towers), seconds

    @property
    def table(self) -> pd.DataFrame:
        """A row for each layout of each model; bytes and seconds, all projected."""
        tables = {name: plan.table for name, plan in self.towers.items()}
        if not tables:
            return super().table.assign(tower="")
        return pd.concat(tables, names=["tower"]).reset_index(0).reset_index(drop=True)

    def __repr__(self) -> str:
        plans = [f"{name}: {plan!r}" for name, plan in self.towers.items()]
        return "\n\n".join([self.model, *plans, "\n".join(self._sentences())])

    def views(self) -> list[View]:
        """Return a table for each model, below what is chosen for all."""
        found = super().views()
        for name, plan in self.towers.items():
            title = f"Plan of {name}: {plan.model}"
            found += [replace(view, title=title) for view in plan.views()]
        return found

    def _sentences(self) -> tuple[str, ...]:
        refused = [name for name, plan in self.towers.items() if plan.layout is None]
        if refused:
            return (f"No layout fits {', '.join(refused)}.", *self.notes)
        total = f"{in_seconds(self._seconds)} for all models together"
        return (f'> parallel="auto": {total}', *self.notes)


HEAD = ["  layout", "replicas", "workers", "memory", "load", "run", "total"]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = cells[0].ljust(widths[0])
    if len(cells) < len(widths):  # refused
        return f"{first}  {cells[1]}"
    rest = [c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True)]
    return "  ".join([first, *rest])
