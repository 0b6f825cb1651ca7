"""A prediction fused with its neighbours: one task of a partition, from read to write.

Dask 2026.8.0 fuses in `DataFrame.optimize` and `DataFrame.persist`, but not in
`compute`, `to_parquet`, `dask.compute` and `dask.persist`: what they optimize is no
dataframe's expression, and is never fused. Each partition then meets the scheduler once
for every operation, and its rows stay in memory in between. So a lowered prediction
fuses itself, by Dask's own rule: with operations on the same partition whose result
is read inside the task only. What others read, too, stays a task of its own, run once.
"""

from __future__ import annotations

import functools
from typing import Any

from dask_infer._dask import Expr, Fused, is_fusible
from dask_infer.graph.computing import name_tasks


class FusedPrediction(Fused):
    """Operations on one partition, a prediction among them, that are one task.

    Grows while the optimizer passes over the expression, until no neighbour is left.
    """

    #: The operations, last one first.
    exprs: list[Expr]

    def __new__(cls, exprs: list[Any], *outside: Expr, **kwargs: Any) -> Any:
        """Take operations and what they read; newer versions of that are followed.

        The optimizer rewrites operands, and does not look into lists.
        """
        for old, new in zip(_outside(exprs), outside, strict=True):
            if old._name != new._name:
                exprs = [expr.substitute(old, new) for expr in exprs]
        return super().__new__(cls, exprs, *outside, **kwargs)  # type: ignore[no-untyped-call]

    @property
    def predictions(self) -> list[Expr]:
        """The predictions among the operations."""
        # Expressions take an attribute that they lack for a column.
        return [e for e in self.exprs if "group_request" in type(e)._parameters]

    def __str__(self) -> str:
        # Also the name on the dashboard, where the prediction should be seen.
        names = [e._name.split("-")[0] for e in sorted(self.exprs, key=Expr._depth)]
        if len(names) <= 4:
            return "-".join(names)
        inner = [name for name in names[1:-1] if name.startswith("predict")]
        return "-".join([names[0], "fused", *inner, names[-1]])

    @functools.cached_property
    def _name(self) -> str:
        name = f"{self}-{self.deterministic_token}"
        name_tasks(name, self.predictions)
        return name

    def _simplify_up(self, parent: Expr, dependents: Any) -> Any:
        return fuse(self, parent, dependents)

    def _lower(self) -> None:
        # Where it was optimized before, no prediction is seen to be lowered but here.
        for prediction in self.predictions:
            prediction._lower()


def fuse(node: Expr, parent: Expr, dependents: Any) -> Any:
    """Return `parent` with the lowered prediction `node` fused; None if it is already.

    Parameters
    ----------
    node
        A prediction, or one that is fused with neighbours.
    parent
        An expression that reads `node`.
    dependents
        Weak references to the expressions that read an expression, by its name.
    """
    if is_fusible(parent):
        group = _group(parent, dependents)
        if node._name in group:
            return _fused(group)
    group = _group(node, dependents)
    return parent.substitute(node, _fused(group)) if len(group) > 1 else None


def _group(top: Expr, dependents: Any) -> dict[str, Expr]:
    """Return what can run in one task with `top`, which comes first, by name."""
    group = {top._name: top}
    queue = [top]
    while queue:
        for below in queue.pop().dependencies():
            if (
                below._name not in group
                and is_fusible(below)
                and below.npartitions == top.npartitions
                and _readers(below, dependents) <= group.keys()
            ):
                group[below._name] = below
                # Others may have waited for this one.
                queue = list(group.values())
    return group


def _readers(expr: Expr, dependents: Any) -> set[str]:
    alive = (reference() for reference in dependents[expr._name])
    return {reader._name for reader in alive if reader is not None}


def _fused(group: dict[str, Expr]) -> Any:
    grown = [e for e in group.values() if isinstance(e, FusedPrediction)]
    # One may read another: the upper one first, then the other is seen in it.
    grown.sort(key=Expr._depth, reverse=True)
    exprs: list[Any] = []
    for expr in group.values():
        exprs += expr.exprs if isinstance(expr, FusedPrediction) else [expr]
    for old in grown:
        exprs = [expr.substitute(old, old.exprs[0]) for expr in exprs]
    return FusedPrediction(exprs, *_outside(exprs))


def _outside(exprs: list[Expr]) -> list[Expr]:
    """Expressions that a group reads and does not hold."""
    inside = {expr._name for expr in exprs}
    read = {e._name: e for expr in exprs for e in expr.dependencies()}
    return [expr for name, expr in read.items() if name not in inside]
