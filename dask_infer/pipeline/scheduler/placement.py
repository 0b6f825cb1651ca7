"""Which workers can hold a stage now, and what is missing where too few can.

Pure: facts about workers in, addresses or a sentence out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

#: Bytes of a worker process that has imported torch and what splits models (torch
#: 2.13.0), before it holds any.
PROCESS_BYTES = 480 * 2**20

Resources = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class WorkerState:
    """One worker as the coordinator sees it."""

    address: str
    #: Dask resources in all, and those that no task holds.
    total: Mapping[str, float] = field(default_factory=dict)
    free: Mapping[str, float] = field(default_factory=dict)
    #: Bytes that models may take; None where nobody watches.
    memory: int | None = None
    host: str = ""
    #: Stages that it holds, by the name of their model.
    holds: tuple[str, ...] = ()

    def has(self, resources: Resources) -> bool:
        """Whether it could ever hold a stage."""
        return all(self.total.get(name, 0) >= amount for name, amount in resources)

    def is_free(self, resources: Resources) -> bool:
        """Whether it can hold one now; without resources it holds no other."""
        if not resources:
            return not self.holds
        return all(self.free.get(name, 0) >= amount for name, amount in resources)


def models_bytes(limit: int) -> int:
    """Bytes that models may take on a worker of this memory limit, as it has defaults.

    60 % of it, and what is left below the 80 % at which Dask pauses it.
    """
    return max(0, min(int(0.6 * limit), int(0.8 * limit) - PROCESS_BYTES))


def candidates(
    workers: Iterable[WorkerState], resources: Resources, taken: Iterable[str] = ()
) -> list[WorkerState]:
    """Workers that can hold a stage now, those without stages first.

    Parameters
    ----------
    taken
        Workers that hold another stage of the same instance.
    """
    without = set(taken)
    free = [
        worker
        for worker in workers
        if worker.address not in without and worker.is_free(resources)
    ]
    return sorted(free, key=lambda worker: (len(worker.holds), worker.address))


def shortage(
    workers: Iterable[WorkerState],
    resources: Resources,
    needed: int,
    taken: Iterable[str] = (),
) -> str:
    """Say how many places there are for how many that are needed, and who has them."""
    workers = list(workers)
    able = [worker for worker in workers if worker.has(resources)]
    free = candidates(workers, resources, taken)
    what = f"workers with {_told(resources)}" if resources else "workers of their own"
    told = (
        f"{needed} {what} are needed and {len(free)} are free "
        f"(of {len(workers)} workers, {len(able)} "
        + (f"have {_told(resources)})" if resources else "could hold one)")
    )
    held = [
        f"{worker.address} holds {', '.join(sorted(set(worker.holds)))}"
        for worker in able
        if worker.holds and worker.address not in set(taken)
    ]
    busy = [
        f"{worker.address} has its {_told(resources)} in use by other tasks"
        for worker in able
        if not worker.holds and not worker.is_free(resources)
    ]
    return "; ".join([told, *held, *busy])


def remedy(resources: Resources) -> str:
    """Say what brings more places."""
    if not resources:
        return "start more workers, or pass fewer stages"
    start = " ".join(f"{name}={amount:g}" for name, amount in resources)
    return (
        f'start more workers with them (dask worker --resources "{start}"), or pass '
        "fewer stages"
    )


def _told(resources: Resources) -> str:
    return ", ".join(f"{name}={amount:g}" for name, amount in resources)
