"""The table of stages: what each holds, where, and how long it is projected to take."""

from __future__ import annotations

from dask_infer.plan.stages import Stage, StagePlan
from dask_infer.plan.units import in_bytes, in_seconds

COLUMNS = (
    "stage",
    "blocks",
    "parameters",
    "bytes",
    "projected",
    "of slowest",
    "worker",
)
#: Columns of text, which begin at the left.
TEXT = ("blocks", "worker")


def rows(plan: StagePlan) -> list[dict[str, object]]:
    """Return a row for each stage, under the names of `COLUMNS`, as plain values.

    ``projected`` is in seconds, ``of slowest`` between 0 and 1.
    """
    return [
        {
            "stage": index,
            "blocks": _blocks(stage),
            "parameters": stage.parameters,
            "bytes": stage.nbytes,
            "projected": stage.seconds,
            "of slowest": stage.seconds / plan.slowest if plan.slowest else 1.0,
            "worker": stage.worker,
        }
        for index, stage in enumerate(plan.stages)
    ]


def text(plan: StagePlan) -> str:
    """Return the table and the reasons, to be printed."""
    cells = [list(COLUMNS), *([*map(_told, row.items())] for row in rows(plan))]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if name in TEXT else cell.rjust(width)
            for name, cell, width in zip(COLUMNS, line, widths, strict=True)
        ).rstrip()
        for line in cells
    ]
    return "\n".join([*lines, *plan.reasons])


def _blocks(stage: Stage) -> str:
    return stage.first if stage.first == stage.last else f"{stage.first}..{stage.last}"


def _told(cell: tuple[str, object]) -> str:
    name, value = cell
    if name == "bytes" and isinstance(value, int):
        return in_bytes(value)
    if name == "projected" and isinstance(value, float):
        return in_seconds(value)
    if name == "of slowest":
        return f"{value:.0%}"
    return f"{value:,}" if isinstance(value, int) else str(value)
