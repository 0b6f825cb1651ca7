"""The parts of the page: each a Bokeh model, and an `update` for its numbers."""

from __future__ import annotations

import html
from typing import Any

from bokeh.layouts import column
from bokeh.models import (
    Column,
    ColumnDataSource,
    CustomJS,
    DataTable,
    Div,
    FactorRange,
    HoverTool,
    HTMLTemplateFormatter,
    NumberFormatter,
    NumeralTickFormatter,
    RadioButtonGroup,
    StringFormatter,
    TableColumn,
)
from bokeh.plotting import figure
from bokeh.transform import dodge

from dask_infer.dashboard.cluster_counters import ClusterCounters
from dask_infer.dashboard.page_tables import (
    GLANCE,
    TableRow,
    by_model,
    replica_table,
    summary,
    table_rows,
    time_table,
)
from dask_infer.metrics.sums import ACTIVITIES, Label

#: Lines of a plot that can be distinguished by colour; those that moved last.
LINES = 8
#: Bars of a plot; the busiest.
BARS = 16
#: Pixels of a figure, and of the one that has a legend above it.
HEIGHT, TALL = 270, 300

COLORS: tuple[str, ...] = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728")
COLORS += ("#9467bd", "#8c564b", "#e377c2", "#17becf")
ACTIVITY_COLORS = {
    "read": "#4c78a8",
    "load": "#9d755d",
    "encode": "#72b7b2",
    "wait": "#eeca3b",
    "transfer": "#f58518",
    "forward": "#54a24b",
    "decode": "#b279a2",
    "other": "#bab0ac",
    "idle": "#ececec",
}
#: Colours a number that should be zero.
BAD = (
    '<div style="text-align:right;<%= value > 0 ? '
    '"color:#b30000;font-weight:bold" : "color:#999" %>">'
    "<%= value.toLocaleString('en-US') %></div>"
)
#: Field, title, width and kind of each column of the table.
TABLE_COLUMNS = (
    ("model", "model", 180, "text"),
    ("part", "part", 105, "text"),
    ("worker", "worker", 190, "text"),
    ("device", "device", 60, "text"),
    ("bytes", "memory", 80, "bytes"),
    ("rows", "rows", 95, "count"),
    ("rate", "rows / s", 75, "count"),
    ("batch", "batch", 60, "count"),
    ("window", "window", 65, "text"),
    ("failed", "failed", 60, "bad"),
    ("halvings", "halvings", 65, "bad"),
)


def _look(kind: str) -> Any:
    """Return how a column is shown; a new one, it belongs to one page."""
    if kind == "bytes":
        return NumberFormatter(format="0.0 b", text_align="right", nan_format="")
    if kind == "count":
        return NumberFormatter(format="0,0", text_align="right", nan_format="")
    if kind == "bad":
        return HTMLTemplateFormatter(template=BAD)
    return StringFormatter()


class Summary:
    """A sentence on what runs."""

    def __init__(self, counters: ClusterCounters, **options: Any) -> None:
        self.counters = counters
        self.root = Div(name="infer_summary", sizing_mode="stretch_width")

    def update(self) -> None:
        """Say it anew."""
        text = html.escape(summary(self.counters, table_rows(self.counters)))
        if text != self.root.text:
            self.root.text = text


class ByWorker:
    """A part that shows workers, or where they are many models and stages.

    Which of the two is chosen by the number of lines until somebody clicks.
    """

    def __init__(self, counters: ClusterCounters) -> None:
        self.counters = counters
        self.choice = RadioButtonGroup(
            labels=["by model and stage", "by worker"], active=0, width=260
        )
        self.clicked = False
        self.choice.on_change("active", self._click)
        self._setting = False

    def _click(self, attr: str, old: Any, new: Any) -> None:
        if not self._setting:
            self.clicked = True
            self.update()

    def found(self) -> list[TableRow]:
        """Return the lines to show."""
        found = table_rows(self.counters)
        if not self.clicked:
            self._setting = True
            self.choice.active = int(len(found) <= GLANCE)
            self._setting = False
        return found if self.choice.active else by_model(found)

    def update(self) -> None:
        """Show the numbers of the moment."""
        raise NotImplementedError


class Replicas(ByWorker):
    """The table of replicas and stages."""

    root: Column

    def __init__(self, counters: ClusterCounters, **options: Any) -> None:
        super().__init__(counters)
        self.source = ColumnDataSource(replica_table([]), name="infer_replicas")
        self.table = DataTable(
            source=self.source,
            columns=[
                TableColumn(field=name, title=title, width=width, formatter=_look(kind))
                for name, title, width, kind in TABLE_COLUMNS
            ],
            index_position=None,
            sizing_mode="stretch_width",
            # As Dask's own tables: below what its menus open over.
            stylesheets=[":host {z-index: 0;}"],
        )
        # Bokeh draws a table anew where the number of its rows changes, and only there
        # (bokeh 3.9.2).
        redraw = CustomJS(args={"view": self.table.view}, code="view.change.emit()")
        self.source.js_on_change("data", redraw)
        self.root = column(
            self.choice, self.table, name="infer_table", sizing_mode="stretch_width"
        )

    def update(self) -> None:
        """Show the numbers of the moment."""
        found = self.found()
        self.table.height = 32 + 25 * min(max(3, len(found)), GLANCE)
        _update(self.source, replica_table(found))


class OverTime:
    """Lines over time of partitions, or of first stages: those that moved last."""

    name: str
    title: str
    #: What is drawn, of partitions or of stages.
    value: str
    stages: bool

    def __init__(self, counters: ClusterCounters, **options: Any) -> None:
        self.counters = counters
        drawn = _drawn(counters, self.stages)
        self.source = ColumnDataSource(drawn, name=self.name)
        self.root = _figure(self.title, options, x_axis_type="datetime")
        self.root.name = self.name
        self.root.multi_line(
            "at", self.value, color="color", legend_field="model", line_width=2,
            source=self.source,
        )  # fmt: skip
        self.root.y_range.start = 0
        _place_legend(self.root)

    def update(self) -> None:
        """Show the lines that moved last."""
        _update(self.source, _drawn(self.counters, self.stages))


class Throughput(OverTime):
    """Rows a second, read and predicted."""

    name, value, stages = "infer_rows", "rate_out", False
    title = "Rows a second (dashed: read)"

    def __init__(self, counters: ClusterCounters, **options: Any) -> None:
        super().__init__(counters, **options)
        self.root.multi_line(
            "at", "rate_in", color="color", line_dash="dashed", source=self.source
        )
        self.root.yaxis.formatter = NumeralTickFormatter(format="0,0")


class Windows(OverTime):
    """How full the windows of groups are."""

    name, value, stages = "infer_windows", "filled", True
    title = "Microbatches in the windows, % (groups of workers only)"

    def __init__(self, counters: ClusterCounters, **options: Any) -> None:
        super().__init__(counters, **options)
        self.root.y_range.end = 105


class Time(ByWorker):
    """Where the time of threads goes."""

    def __init__(self, counters: ClusterCounters, **options: Any) -> None:
        super().__init__(counters)
        _, empty = time_table([])
        self.source = ColumnDataSource(empty, name="infer_time")
        self.figure = _figure(
            "Where the time goes",
            {"height": TALL} | options,
            y_range=FactorRange(),
            x_range=(0, 100),
        )
        self.figure.name = "infer_time"
        bars = self.figure.hbar_stack(
            list(ACTIVITIES),
            y="where",
            height=0.8,
            color=[ACTIVITY_COLORS[activity] for activity in ACTIVITIES],
            legend_label=list(ACTIVITIES),
            source=self.source,
        )
        for activity, bar in zip(ACTIVITIES, bars, strict=True):
            tips = [
                ("where", "@where"),
                (activity, f"@{activity}{{0.0}} %"),
                ("of", "@seconds{0.0} s of threads"),
            ]
            self.figure.add_tools(HoverTool(tooltips=tips, renderers=[bar]))
        self.figure.xaxis.axis_label = "% of the time of threads"
        self.figure.ygrid.visible = False
        legend = self.figure.legend[0]
        legend.orientation, legend.padding, legend.spacing = "horizontal", 2, 6
        legend.label_text_font_size, legend.glyph_width = "8pt", 12
        legend.border_line_color = None
        self.figure.add_layout(legend, "above")
        self.root = column(
            self.choice,
            self.figure,
            name="infer_times",
            sizing_mode=options.get("sizing_mode", "stretch_width"),
        )

    def update(self) -> None:
        """Show the shares of the last half minute, or of all where nothing ran."""
        late, table = time_table(_busiest(self.found()))
        since = "in the last 30 s" if late else "since the workers started"
        self.figure.title.text = f"Where the time goes, {since}"
        _update(self.source, table)
        factors = table["where"][::-1]
        if self.figure.sizing_mode == "stretch_width":
            self.figure.height = max(TALL, 110 + 17 * len(factors))
        if self.figure.y_range.factors != factors:
            self.figure.y_range.factors = factors


class Failures:
    """Rows that failed and batches that were halved, by model."""

    def __init__(self, counters: ClusterCounters, **options: Any) -> None:
        self.counters = counters
        self.source = ColumnDataSource(
            {"model": [], "failed": [], "halvings": []}, name="infer_failures"
        )
        title = "Failed rows and halvings, since the workers started"
        self.root = _figure(title, options, y_range=FactorRange())
        self.root.name = "infer_failures"
        for name, color, shift in (
            ("failed", "#d62728", 0.2),
            ("halvings", "#ff9896", -0.2),
        ):
            title = {"failed": "failed rows"}.get(name, name)
            at = dodge("model", shift, range=self.root.y_range)
            self.root.hbar(
                y=at, right=name, height=0.35, color=color, legend_label=title,
                source=self.source,
            )  # fmt: skip
            self.root.text(
                x=name, y=at, text={"field": name}, text_baseline="middle",
                text_font_size="9pt", x_offset=4, source=self.source,
            )  # fmt: skip
        self.root.x_range.start = 0
        self.root.ygrid.visible = False
        self.root.xaxis.formatter = NumeralTickFormatter(format="0,0")
        _place_legend(self.root, "bottom_right")

    def update(self) -> None:
        """Show what was counted."""
        sums = self.counters.sums.by_model()
        found = {label: each for label, each in sums.items() if label.stage is None}
        names = [label.model for label in found][-LINES:]
        counters = [found[Label(name)] for name in names]
        table = {
            "model": names,
            "failed": [each.count("failed_rows") for each in counters],
            "halvings": [each.count("halvings") for each in counters],
        }
        _update(self.source, table)
        if self.root.y_range.factors != names[::-1]:
            self.root.y_range.factors = names[::-1]


def _busiest(found: list[TableRow]) -> list[TableRow]:
    """Return the lines that fit, in their order."""
    if len(found) <= BARS:
        return found
    spent = [sum(line.recent.seconds.values()) for line in found]
    least = sorted(spent, reverse=True)[BARS - 1]
    return [line for line, s in zip(found, spent, strict=True) if s >= least][:BARS]


def _update(source: ColumnDataSource, data: dict[str, Any]) -> None:
    if source.data != data:
        source.data = data


def _figure(title: str, options: dict[str, Any], **more: Any) -> Any:
    """Return a figure, which Bokeh's types do not know well enough to be filled."""
    options = {"height": HEIGHT, "sizing_mode": "stretch_width"} | options
    made = figure(title=title, tools="", toolbar_location=None, **more, **options)
    made.title.text_color, made.title.text_font_size = "#444", "11pt"
    made.outline_line_color = None
    return made


def _place_legend(figure: Any, where: str = "top_left") -> None:
    for legend in figure.legend:
        legend.location = where
        legend.label_text_font_size = "8pt"
        legend.background_fill_alpha = 0.6
        legend.border_line_color = None
        legend.padding = 4


def _drawn(counters: ClusterCounters, stages: bool) -> dict[str, list[Any]]:
    """Return lines as `multi_line` draws them, times in milliseconds.

    Those that moved last: of partitions, or of first stages. A model has one colour in
    all plots, for as long as no other model comes.
    """
    lines = counters.history.lines
    models = sorted({label.model for label in lines})
    colors = {m: COLORS[place % len(COLORS)] for place, m in enumerate(models)}
    wanted = [label for label in lines if label.stage == (0 if stages else None)]
    found = [(label, list(lines[label])) for label in sorted(wanted[-LINES:])]
    return {
        "model": [label.model for label, _ in found],
        "at": [[1e3 * p.at for p in line] for _, line in found],
        "rate_in": [[p.rate_in for p in line] for _, line in found],
        "rate_out": [[p.rate_out for p in line] for _, line in found],
        "filled": [
            [100 * p.inside / p.window if p.window else 0.0 for p in line]
            for _, line in found
        ],
        "color": [colors[label.model] for label, _ in found],
    }
