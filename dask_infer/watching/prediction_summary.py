"""What a dataframe predicts, and what of it has run, for ``pred.infer``."""

from __future__ import annotations

from typing import Any

from dask.utils import format_bytes

from dask_infer.graph.computing import jobs_of_task
from dask_infer.graph.expr import predictions_in
from dask_infer.metrics.sums import Label, Sums
from dask_infer.replica.residents import current_client
from dask_infer.run.predict import label_of
from dask_infer.spec import Job, Layout
from dask_infer.spec.input_spec import Argument
from dask_infer.views.view import View, Viewed
from dask_infer.watching.counts import Counts

#: Columns of an argument that are named.
NAMED = 6

NOTHING = View(
    "No prediction in this dataframe.",
    sentences=("ddf.infer.predict(model) adds one; nothing runs before compute().",),
)


class PredictionSummary(Viewed):
    """The predictions of a dataframe, as text and HTML.

    Parameters
    ----------
    frame
        A Dask dataframe or series.
    """

    def __init__(self, frame: Any) -> None:
        found = predictions_in(frame.expr)
        self._jobs: dict[Label, Job] = {}
        #: What each of several models is: towers, members, the head.
        self._parts: dict[Label, list[str]] = {}
        for node in found:
            for job, part in node.job.parts:
                if not job.token:
                    continue
                self._jobs[label_of(job)] = job
                if not isinstance(node.job, Job):
                    self._parts.setdefault(label_of(job), []).append(part)
        #: Those of a dataframe that is persisted, of which no more is known.
        self._persisted: set[Label] = set()
        if not found:
            for key in frame.__dask_keys__():
                self._persisted.update(jobs_of_task(key))

    def views(self) -> list[View]:
        """Return a view of each prediction."""
        if not (self._jobs or self._persisted):
            return [NOTHING]
        counted = _counted()

        def run(label: Label) -> str:
            if isinstance(counted, str):
                return counted
            return _run(counted.get(label, Sums()))

        views = [
            View(self._title(label), _lines(job) | {"run so far": run(label)})
            for label, job in self._jobs.items()
        ]
        return views + [
            View(f"{label.model} (persisted)", {"run so far": run(label)})
            for label in sorted(self._persisted)
        ]

    def _title(self, label: Label) -> str:
        parts = ", ".join(self._parts.get(label, ()))
        return f"{label.model} ({parts})" if parts else label.model


def _lines(job: Job) -> dict[str, str]:
    model = job.model
    size = f", {format_bytes(model.nbytes)}" if model.nbytes else ""
    outputs = [_column(c.name, c.dtype, c.shape) for c in job.outputs.columns]
    return {
        "model": f"{model.name} ({model.kind}{size}) from {model.origin}",
        "key": model.key,
        "layout": _layout(job),
        "inputs": "; ".join(map(_argument, job.inputs.arguments)),
        "outputs": "; ".join(outputs),
    }


def _layout(job: Job) -> str:
    if job.auto is not None:
        return 'chosen when it is computed (parallel="auto")'
    if job.sweep is not None:
        return str(Layout(stages=job.sweep.stages, sweep=True))
    if job.group is None:
        return "each worker holds the whole model"
    resources = job.group.resources
    held = "".join(f", {name}: {amount:g}" for name, amount in resources)
    return f"{job.group.layout}{held}"


def _argument(argument: Argument) -> str:
    columns = list(map(str, argument.columns))
    if len(columns) > NAMED:
        columns = [*columns[:NAMED], f"... {len(columns)} in all"]
    names = ", ".join(columns)
    names = f"[{names}]" if argument.stacked else names
    keyword = f"{argument.keyword}=" if argument.keyword else ""
    kind = argument.dtype or argument.content
    shape = (len(argument.columns),) if argument.stacked else argument.shape or ()
    return keyword + _column(names, kind, shape)


def _column(name: Any, dtype: Any, shape: tuple[int | None, ...]) -> str:
    rows = "".join(f", {'*' if length is None else length}" for length in shape)
    return f"{name}: {dtype} (n{rows or ','})"


def _counted() -> dict[Label, Sums] | str:
    """Return what was counted of all jobs, or why that is not known."""
    client = current_client()
    if client is not None and client.asynchronous:
        return "not known here: the client is asynchronous"
    counts = Counts(from_now=False, local=True)
    try:
        if client is not None:
            counts.add(client)
            counts.refresh()
        return counts.read()
    except Exception as error:
        return f"not known: {error}"


def _run(sums: Sums) -> str:
    if not sums.count("started"):
        return "nothing yet"
    text = f"{sums.count('rows'):,} rows in {_partitions(sums.count('partitions'))}"
    if failed := sums.count("failed_rows"):
        text += f", {failed:,} rows failed"
    if running := sums.levels.get("partitions"):
        text += f"; {_partitions(round(running))} running"
    return text


def _partitions(count: int) -> str:
    return f"{count:,} partition{'s' * (count != 1)}"
