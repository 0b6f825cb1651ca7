"""The only importer of Dask's private names: a new release is adapted to here.

Checked with dask and distributed 2026.8.0.
"""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any, TypeVar

from dask._collections import new_collection
from dask._task_spec import Task, TaskRef
from dask.core import flatten
from dask.dataframe.dask_expr import DataFrame, Series
from dask.dataframe.dask_expr._expr import (
    Blockwise,
    Elemwise,
    Expr,
    Filter,
    Fused,
    Index,
    Projection,
    determine_column_projection,
    is_filter_pushdown_available,
    is_valid_blockwise_op,
)
from distributed.worker import thread_state  # type: ignore[attr-defined]

#: What is passed on as it is; functions for all else follow.
__all__ = [
    "Blockwise",
    "DataFrame",
    "Elemwise",
    "Expr",
    "Filter",
    "Fused",
    "Index",
    "Projection",
    "Series",
    "Task",
    "TaskRef",
    "is_filter_pushdown_available",
    "new_collection",
]

T = TypeVar("T")


def is_lazy(collection: Any) -> bool:
    """Whether a collection has partitions that no task computes yet."""
    graph = collection.__dask_graph__()
    keys = flatten(collection.__dask_keys__())
    return any(isinstance(graph[key], (Task, tuple)) for key in keys)


def projected_columns(expr: Expr, parent: Expr, dependents: Any) -> set[Any]:
    """Columns that `parent` and every other reader of `expr` read.

    Dask counts neither what is computed as it is beside others, nor the keys of a
    groupby: what reads `expr` itself and not columns of it counts as reading all.
    """
    readers = [reference() for reference in dependents[expr._name]]
    if not all(isinstance(each, (Projection, Index, NoneType)) for each in readers):
        return set(expr.columns)
    columns = determine_column_projection(expr, parent, dependents)
    return set(columns) if isinstance(columns, list) else {columns}


def is_fusible(expr: Expr) -> bool:
    """Whether each partition of `expr` is one task that fusion may take in."""
    return bool(is_valid_blockwise_op(expr))


def live_clients() -> list[Any]:
    """Return the connected clients of this process; none where there is no cluster."""
    import sys

    if "distributed" not in sys.modules:
        return []
    from distributed import Client

    return [c for c in list(Client._instances) if c.status == "running"]


def run_on_loop(client: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a coroutine function of the client returns on its event loop.

    Never called on that loop; the client may be asynchronous.
    """
    from distributed.utils import sync

    return sync(client.loop, function, client, *arguments, callback_timeout=10)


def count_rows(expr: Expr) -> int | None:
    """Return the rows of an expression where metadata has them; runs nothing."""
    from dask.dataframe.dask_expr._expr import Literal
    from dask.dataframe.dask_expr._reductions import Len

    found = Len(expr).optimize(fuse=False)
    return int(found.value) if isinstance(found, Literal) else None


#: Partitions beyond which the footers of all files would take too long to read.
COUNTED = 2000


def count_rows_at_most(expr: Any) -> int | None:
    """Return the rows of an expression, or those before its filters; runs nothing.

    None where metadata does not say, or is in too many files.
    """
    from dask.dataframe.dask_expr._expr import DropnaFrame
    from dask.dataframe.dask_expr.io.parquet import ReadParquet

    if expr.npartitions > COUNTED:
        return None
    while True:
        if isinstance(expr, ReadParquet) and expr.operand("filters"):
            expr = expr.substitute_parameters({"filters": None})
        rows = count_rows(expr)
        if rows is not None or not isinstance(expr, (Filter, Elemwise, DropnaFrame)):
            return rows
        expr = next(e for e in expr.dependencies() if e.ndim)  # type: ignore[no-untyped-call]


def count_partitions(expr: Expr) -> int:
    """Return the partitions that will be computed: Dask may join small files."""
    return int(expr.optimize(fuse=False).npartitions)


def current_task_key() -> Any:
    """Key of the task that a worker runs in the calling thread."""
    return thread_state.key


def count_tasks_like_this(worker: Any) -> int:
    """Tasks that a worker runs now, of the layer of the calling thread's task."""
    keys = [current_task_key(), *(t.key for t in worker.state.executing.copy())]
    own, *names = [key[0] if isinstance(key, tuple) else key for key in keys]
    return names.count(own)


def as_part_of_task(work: Callable[[], T]) -> Callable[[], T]:
    """Return `work` as another thread may run it: as a part of the calling task.

    The worker travels in the context, the task's key in the state of threads.
    """
    from distributed.utils import set_thread_state

    names = ("key", "start_time")
    state = {n: getattr(thread_state, n) for n in names if hasattr(thread_state, n)}
    context = contextvars.copy_context()

    def run() -> T:
        with set_thread_state(**state):
            return context.run(work)

    return run


def is_task_thread() -> bool:
    """Whether the calling thread is one of a worker's own, which tasks may leave."""
    from distributed import threadpoolexecutor

    return hasattr(threadpoolexecutor.thread_state, "executor")


def task_start() -> float | None:
    """When the task of the calling thread began, in seconds since the epoch."""
    return getattr(thread_state, "start_time", None)


def count_in_fine_metrics(seconds: Mapping[str, float]) -> None:
    """Show the parts of a task in Dask's fine performance metrics, and in spans."""
    from distributed.metrics import context_meter

    for activity, amount in seconds.items():
        context_meter.digest_metric(f"infer-{activity}", amount, "seconds")


def sample_no_faster(worker: Any, seconds: float) -> None:
    """Make the profiler of a worker wait at least so long between two samples."""
    sampler = worker.periodic_callbacks.get("profile")
    if sampler is not None:
        sampler.callback_time = max(sampler.callback_time, 1e3 * seconds)


def schema_columns(expr: Expr) -> dict[Any, Any]:
    """Arrow types of the columns of `expr` that come unchanged from parquet files.

    The search passes nodes that keep a column's values and ends at all others.
    """
    from dask.dataframe.dask_expr._expr import RenameFrame, ToFrame
    from dask.dataframe.dask_expr.io.parquet import ReadParquet

    if isinstance(expr, ReadParquet):
        schema = expr._dataset_info["schema"]
        return {name: schema.field(name).type for name in schema.names}
    changed = _changed_columns(expr)
    if changed is None:
        return {}
    types = schema_columns(expr.frame)
    # Files hold columns that are not read; a new name may be one of theirs.
    held = {name: types[name] for name in expr.frame.columns if name in types}
    if isinstance(expr, (RenameFrame, ToFrame)):
        names = zip(expr.frame.columns, expr.columns, strict=True)
        return {new: held[old] for old, new in names if old in held}
    return {name: kind for name, kind in held.items() if name not in changed}


def _changed_columns(expr: Expr) -> set[Any] | None:
    """Columns that `expr` gives other values; None where that is unknown."""
    from dask.dataframe.dask_expr import _expr
    from dask.dataframe.dask_expr._repartition import Repartition

    if isinstance(expr, _expr.Assign):
        return set(expr.keys)
    if isinstance(expr, _expr.AsType):
        dtypes = expr.operand("dtypes")
        return set(dtypes if isinstance(dtypes, Mapping) else expr.columns)
    if hasattr(expr, "job") and hasattr(expr, "emit"):  # an earlier prediction
        return set(expr.job.names)
    keeping = (
        *(Projection, Filter, Repartition, _expr.Head, _expr.Tail, _expr.Partitions),
        *(_expr.Drop, _expr.DropnaFrame, _expr.RenameFrame, _expr.ToFrame),
    )
    if isinstance(expr, _expr.ResetIndex):
        return set() if expr.drop else None
    return set() if isinstance(expr, keeping) else None


def register_tensor_dtype(array: type, dtype: type) -> None:
    """Register the tensor column with Dask; a second call changes nothing.

    Dask invents rows for its meta; ``array.synthetic(dtype)`` makes them. Array and
    dtype have tokens of their own: Dask's token of an extension array pickles the rows
    one by one, and its token of a dtype is the dtype's name alone.
    """
    import pandas as pd
    from dask.dataframe.dispatch import from_pyarrow_table_dispatch
    from dask.dataframe.extensions import make_array_nonempty
    from dask.tokenize import normalize_token

    make_array_nonempty.register(dtype, array.synthetic)  # type: ignore[attr-defined]
    for kind in (array, dtype):
        normalize_token.register(kind, lambda x: normalize_token(x.__dask_tokenize__()))
    read = from_pyarrow_table_dispatch.dispatch(pd.DataFrame)
    if getattr(read, "func", None) is not _from_table:
        from_pyarrow_table_dispatch.register(
            pd.DataFrame, functools.partial(_from_table, read, dtype)
        )


def _from_table(
    read: Callable[..., Any], dtype: Any, meta: Any, table: Any, **kwargs: Any
) -> Any:
    """Turn an Arrow table into a frame; tensor columns come back as `meta` has them.

    The P2P shuffle goes by the table's pandas metadata, which calls them object. It
    then casts to the common dtype of object and theirs (distributed/shuffle/_arrow.py),
    which is object for every dtype that lets object be object.
    """
    dtypes = {
        name: kind for name, kind in meta.dtypes.items() if isinstance(kind, dtype)
    }
    names = [name for name in table.column_names if name in dtypes]
    if not names:
        return read(meta, table, **kwargs)
    columns = {name: dtypes[name].__from_arrow__(table[name]) for name in names}
    frame = read(meta, table.drop_columns(names), **kwargs)
    order = [
        name for name in table.column_names if name in columns or name in frame.columns
    ]
    for name in names:
        frame.insert(order.index(name), name, columns[name])
    return frame


def add_dashboard_pages(
    scheduler: Any, pages: Mapping[str, Any], plots: Mapping[str, str], page: str
) -> bool:
    """Add pages to a scheduler's dashboard while it runs; False where it has none.

    Parameters
    ----------
    pages
        Functions ``f(scheduler, template_variables, document)`` by path.
    plots
        Names of those that are single plots, by path.
    page
        The one that the navigation lists.
    """
    try:
        from bokeh.server.tornado import BokehTornado
        from distributed.dashboard.core import BokehApplication
        from distributed.dashboard.scheduler import template_variables
    except ImportError:  # without bokeh there is no dashboard
        return False
    from distributed.http.scheduler.info import IndividualPlots

    server = scheduler.http_application
    first = next((a for a in server.applications if isinstance(a, BokehTornado)), None)
    if first is None:
        return False
    # These very lists are what all pages of the scheduler show.
    variables = template_variables(scheduler)
    if page not in variables["pages"]:
        variables["pages"].insert(-1, page)
        variables["plots"] += [
            {"url": path.strip("/"), "name": name} for path, name in plots.items()
        ]
    own = BokehApplication(
        pages, scheduler, prefix=first.prefix, template_variables=variables
    )
    own.initialize(first.io_loop)
    own.start()
    server.add_application(own)
    listed = {f"Individual {name}": path for path, name in plots.items()}

    class AllPlots(IndividualPlots):
        """Dask lists the plots of its own application only."""

        def write(self, chunk: Any) -> None:
            """Add ours, under names like Dask's."""
            super().write(chunk | listed if isinstance(chunk, dict) else chunk)

    path = first.prefix.rstrip("/") + "/individual-plots.json"
    server.add_handlers(".*", [(path, AllPlots, {"dask_server": scheduler})])
    return True


def show_page(
    document: Any,
    parts: list[Any],
    seconds: float,
    template: str | None,
    extra: Mapping[str, Any],
) -> None:
    """Fill a document with `parts`, which have a `root` and an `update`.

    `template` extends those of Dask's pages, with `extra` as its variables; None shows
    the parts alone.
    """
    from distributed.dashboard.components import add_periodic_callback
    from distributed.dashboard.components.scheduler import BOKEH_THEME, env

    for part in parts:
        part.update()
        document.add_root(part.root)
        add_periodic_callback(document, part, int(1e3 * seconds))
    if template is not None:
        document.template = env.from_string(template)
    document.template_variables.update(extra)
    document.theme = BOKEH_THEME
