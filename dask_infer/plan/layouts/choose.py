"""The choice among the layouts of a job, and the reason for it in a line."""

from __future__ import annotations

from collections.abc import Sequence

from dask_infer.errors import PlacementError
from dask_infer.plan.layouts.alternative import KINDS, Alternative
from dask_infer.plan.layouts.job_facts import JobFacts
from dask_infer.plan.layouts.local_layouts import data, sweep
from dask_infer.plan.layouts.remote_layouts import replicas, shards, stages
from dask_infer.plan.units import in_seconds

#: Of layouts whose times differ by no more than this share the simpler is taken.
TIE = 0.05


def alternatives(facts: JobFacts) -> list[Alternative]:
    """Return every layout that comes into question, refused ones too."""
    remote = replicas(facts)
    return [
        data(facts),
        *([] if remote is None else [remote]),
        sweep(facts),
        *stages(facts),
        *shards(facts),
    ]


def choose(found: Sequence[Alternative]) -> Alternative | None:
    """Return the fastest layout, or a simpler one that is about as fast.

    None where all are refused.

    Parameters
    ----------
    found
        What `alternatives` returned.
    """
    able = [each for each in found if not each.refused]
    if not able:
        return None
    limit = min(each.total for each in able) * (1 + TIE)
    near = [each for each in able if each.total <= limit]
    return min(
        near, key=lambda each: (KINDS.index(each.kind), each.workers_each, each.total)
    )


def reason(chosen: Alternative, found: Sequence[Alternative]) -> str:
    """Return in a line why a layout was chosen."""
    parts = [f"{chosen.name}: {in_seconds(chosen.total)} projected"]
    others = [each for each in found if each.kind != chosen.kind]
    for kind in KINDS:
        of_kind = [each for each in others if each.kind == kind]
        able = [each for each in of_kind if not each.refused]
        if able:
            best = min(able, key=lambda each: each.total)
            parts.append(f"{best.name} {in_seconds(best.total)}")
        elif of_kind:
            parts.append(f"{of_kind[0].name} refused ({of_kind[0].refused})")
    return "; ".join(parts)


def nothing_fits(name: str, found: Sequence[Alternative]) -> PlacementError:
    """Return the error of a model for which every layout is refused."""
    each = "; ".join(f"{a.name}: {a.refused}" for a in found if a.refused)
    return PlacementError(
        f'model "{name}" fits in no layout: {each}; start workers with more memory or '
        'with the resources, or pass dtype="bfloat16"'
    )
