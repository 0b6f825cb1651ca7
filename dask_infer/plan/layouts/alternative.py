"""One layout of a job, with what it is projected to take or what refuses it."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal, get_args

from dask_infer.spec import Layout

#: Simpler ones first: of layouts that are about as fast the simpler is taken.
Kind = Literal["data", "replicas", "sweep", "stages", "shards"]
KINDS = get_args(Kind)


@dataclass(frozen=True)
class Alternative:
    """A layout; all numbers are projected."""

    kind: Kind
    layout: Layout
    #: Dask resources that go with it.
    resources: tuple[tuple[str, float], ...] = ()
    #: Complete models that work side by side, and workers that hold weights.
    replicas: int = 0
    workers: int = 0
    #: Bytes on the worker that is filled most, and what a layout may take there.
    memory: int = 0
    room: float = inf
    #: Seconds until the weights are there, and for the rows from then on.
    load: float = inf
    run: float = inf
    #: Why it cannot be, with the number that does not fit; empty where it can.
    refused: str = ""

    @property
    def total(self) -> float:
        """Seconds in all."""
        return self.load + self.run

    @property
    def workers_each(self) -> int:
        """Workers of one replica."""
        return self.workers // max(1, self.replicas)

    @property
    def name(self) -> str:
        """The layout in a word, as ``parallel=`` takes it."""
        if self.kind == "stages":
            return f"stages={self.layout.stages}"
        if self.kind == "shards":
            stages = self.layout.stages
            cut = "" if stages == 1 else f"stages={stages}, "
            return f"{cut}shards={self.layout.shards}"
        return self.kind
