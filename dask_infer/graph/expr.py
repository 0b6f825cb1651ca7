"""The prediction as one node of a Dask expression.

`Predict` says what it knows of its parents: which columns it reads, that rows do not
influence each other, that its index is its input's. From that Dask's optimizer moves
projections, filters, `head`, `len` and `partitions` below the model, and removes a
prediction that is never read.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import pandas as pd
from distributed.protocol.pickle import dumps

from dask_infer._dask import (
    Blockwise,
    Elemwise,
    Expr,
    Filter,
    Fused,
    Index,
    Projection,
    Task,
    TaskRef,
    count_rows_at_most,
    is_filter_pushdown_available,
    projected_columns,
)
from dask_infer.batch.outputs.column_dtypes import output_meta
from dask_infer.graph.computing import announce, name_tasks
from dask_infer.graph.fusion import fuse
from dask_infer.graph.tasks import request_groups, run_partition
from dask_infer.metrics.sums import Label
from dask_infer.run.predict import label_of
from dask_infer.spec import AnyJob, AutoSpec, GroupSpec, Job


class _Prediction:
    """What row-wise and batch-wise predictions have in common."""

    _parameters: ClassVar[list[str]] = [
        "frame",
        "job",
        "emit",
        "group_request",
        "lowered",
    ]
    _defaults: ClassVar[dict[str, Any]] = {"group_request": None, "lowered": False}
    #: Input rows below the node.
    frame: Expr
    #: The whole request; with inputs and outputs.
    job: AnyJob
    #: Columns of the result, in order: input columns that are kept, and outputs.
    emit: tuple[Any, ...]
    #: Task that brings groups about; there is one once the node is lowered.
    group_request: GroupRequest | None
    #: Whether the node is about to become tasks, so that it may be fused.
    lowered: bool

    @functools.cached_property
    def _meta(self) -> pd.DataFrame:
        kept = [c for c in self.emit if c not in self.job.names]
        outputs = output_meta(self.job.outputs, self.job.nullable, self.job.quarantine)
        # Rows, index and kept columns are the input's own.
        meta: pd.DataFrame = self.frame._meta[kept].copy()
        for name in self.job.names:
            meta[name] = outputs[name].reindex(meta.index)
        return meta[list(self.emit)]

    @functools.cached_property
    def _name(self) -> str:
        # The dashboard groups tasks by the letters before the token.
        letters = "".join(filter(str.isalpha, self.job.name))
        name = f"predict{letters[:24]}-{self.deterministic_token}"  # type: ignore[attr-defined]
        name_tasks(name, [self])
        return name

    def _divisions(self) -> tuple[Any, ...]:
        return self.frame.divisions  # type: ignore[no-any-return]

    @functools.cached_property
    def _job_bytes(self) -> bytes:
        return bytes(dumps(self.job))

    @functools.cached_property
    def counted(self) -> tuple[tuple[Label, str], ...]:
        """What its rows are counted under, and what for: of each model."""
        return tuple((label_of(m), what) for m, what in self.job.parts if m.token)

    def _task(self, name: Any, index: int) -> Task:
        if index == 0:  # where Dask fused it before, it is not lowered any more
            announce(self)
        frame = TaskRef((self.frame._name, index))
        request = self.group_request
        group = None if request is None else TaskRef((request._name, 0))
        arguments = (frame, self._job_bytes, self.emit, group, index)
        return Task(name, run_partition, *arguments)

    def _simplify_down(self) -> Expr | None:
        narrow = self._emitting(self.emit, self.job)
        return None if narrow._name == self._name else narrow

    def _emitting(self, emit: tuple[Any, ...], job: AnyJob) -> Expr:
        """Return the prediction of fewer columns, which reads what it needs.

        In one step, as whoever reads the same prediction has to arrive at the same
        node: of two that differ in what lies below, both would run the model.
        """
        needed = {*emit, *job.reads}
        required = [c for c in self.frame.columns if c in needed]
        narrow = required != list(self.frame.columns)
        frame = self.frame[required] if narrow else self.frame
        return self._with(frame=frame, emit=emit, job=job)

    def _simplify_up(self, parent: Expr, dependents: Any) -> Any:
        if isinstance(parent, Index):
            return Index(self.frame)
        if isinstance(parent, Projection):
            moved = self._push_projection(parent, dependents)
        else:
            moved = super()._simplify_up(parent, dependents)  # type: ignore[misc]
        if moved is None and self.lowered:
            return fuse(self, parent, dependents)  # type: ignore[arg-type]
        return moved

    def _push_projection(self, parent: Projection, dependents: Any) -> Expr | None:
        columns = projected_columns(self, parent, dependents)  # type: ignore[arg-type]
        emit = tuple(c for c in self.emit if c in columns)
        if not columns & set(self.job.names):
            # No prediction is read: nothing is predicted.
            return type(parent)(self.frame, *parent.operands[1:])
        if emit == self.emit:
            return None
        narrow = self._emitting(emit, self.job.reading(emit))
        if list(emit) == parent.operand("columns"):
            return narrow
        return type(parent)(narrow, *parent.operands[1:])

    def _with(self, **operands: Any) -> Expr:
        return self.substitute_parameters(operands)  # type: ignore[attr-defined,no-any-return]

    def _lower(self) -> Expr | None:
        # Runs on the client whenever something is computed (dask 2026.8.0), which is
        # when the workers may come to ask for weights.
        from dask_infer.replica.delivery import offer_to_workers

        offer_to_workers()
        announce(self)
        if self.lowered:
            return None
        specs = tuple(self._spec(model) for model in self.job.spread_models)
        request = GroupRequest(specs) if specs else None  # type: ignore[no-untyped-call]
        return self._with(lowered=True, group_request=request)

    def _spec(self, model: Job) -> GroupSpec | AutoSpec:
        """Return the group of a model, or what its layout is chosen from.

        That is known only now: the rows that will be predicted.
        """
        if model.auto is None:
            assert model.group is not None
            return model.group
        return replace(
            model.auto,
            rows=count_rows_at_most(self.frame),
            partitions=self.frame.npartitions,
            rate_key=model.rate_key,
        )

    def __str__(self) -> str:
        return f"Predict({self.frame}, {self.job!r})"

    def _tree_repr_argument_construction(self, i: int, op: Any, header: str) -> str:
        return header + (f" {op!r}" if i == 1 else "")


class GroupRequest(Expr):
    """The one task that all partitions wait for where other workers hold models."""

    _parameters = ["groups"]  # noqa: RUF012 (as the base class has it)
    #: The groups that are asked for, or what they are chosen from.
    groups: tuple[GroupSpec | AutoSpec, ...]

    @functools.cached_property
    def _meta(self) -> str:
        return ""

    @functools.cached_property
    def _name(self) -> str:
        return f"request-group-{'-'.join(group.key for group in self.groups)}"

    def _divisions(self) -> tuple[None, None]:
        return (None, None)

    def _layer(self) -> dict[Any, Task]:
        name = (self._name, 0)
        return {name: Task(name, request_groups, bytes(dumps(self.groups)))}


class Predict(_Prediction, Elemwise):
    """A prediction of each row for itself."""

    def _filter_passthrough_available(self, parent: Filter, dependents: Any) -> bool:
        # Filtering first gives the same rows where the predicate reads inputs only.
        return self._reads_inputs_only(parent.predicate) and (
            is_filter_pushdown_available(self, parent, dependents)
        )

    def _reads_inputs_only(self, predicate: Any) -> bool:
        if not isinstance(predicate, Expr):
            return True
        if isinstance(predicate, (Projection, Index)) and self._is(predicate.frame):
            return not set(predicate.columns) & set(predicate.frame.job.names)
        if self._is(predicate):
            return False
        return all(self._reads_inputs_only(d) for d in predicate.dependencies())

    def _is(self, expr: Expr) -> bool:
        """Whether an expression is this prediction, whichever columns it emits.

        The optimizer narrows the rows and the predicate one after the other. In between
        a filter that moved below would run the model once more, for its predicate.
        """
        if not isinstance(expr, Predict):
            return False
        return bool({label for label, _ in self.counted} & {e for e, _ in expr.counted})


class PredictBatches(_Prediction, Blockwise):
    """A prediction whose rows influence each other: batches stay as they are.

    Not element-wise, so no filter and no `head` moves below it.
    """

    # The number of rows is the input's even so.
    _is_length_preserving = True


def predictions_in(expr: Expr) -> list[_Prediction]:
    """Return the predictions that an expression is made of, also where it is fused."""
    nodes = (each for node in expr.walk() for each in _unfused(node))
    found = {node._name: node for node in nodes if isinstance(node, _Prediction)}
    return list(found.values())


def _unfused(node: Any) -> Iterator[Any]:
    if not isinstance(node, Fused):
        yield node
        return
    for each in node.exprs:
        yield from _unfused(each)
