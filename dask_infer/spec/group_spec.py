"""One model on a group of workers, outside the processes of its feeders.

Of ``parallel="auto"`` what is chosen from, once workers are known.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from dask_infer.spec.layout import Layout
from dask_infer.spec.model_spec import Blob, ModelSpec

#: Name of the scheduler plugin that owns groups.
COORDINATOR = "dask-infer-groups"


@dataclass(frozen=True)
class GroupTimeouts:
    """Seconds that the coordinator waits, from the configuration of the client."""

    #: For workers that can hold the model, before it is refused.
    grace: float = 10.0
    #: Without a user, before the group is released.
    idle: float = 60.0
    #: Without a heartbeat, before a stage's worker counts as lost.
    stall: float = 60.0


@dataclass(frozen=True)
class GroupSpec:
    """One model on workers of its own, and how it is spread over them.

    Calls, clients and partitions with an equal key share a group.
    """

    model: ModelSpec
    layout: Layout = field(default_factory=Layout)
    #: Dask resources that each stage holds.
    resources: tuple[tuple[str, float], ...] = ()
    dtype: str | None = None
    device: str = "auto"
    #: Method that is called; None for the model itself.
    method: str | None = None
    #: Seconds that a load or a forward of a stage may take.
    timeout: float | None = None
    #: The model as a chain of blocks, without weights; None where it stays whole.
    chain: Blob | None = None
    timeouts: GroupTimeouts = field(default_factory=GroupTimeouts)

    @property
    def is_divided(self) -> bool:
        """Whether workers share each replica, so that its blocks have to be known."""
        return self.chain is not None or self.layout.shards != 1

    @property
    def key(self) -> str:
        """Name of the group, equal where its stages would be."""
        content = (
            self.model.key,
            self.model.kind,
            self.model.compile,
            self.layout,
            self.resources,
            self.dtype,
            self.device,
            self.method,
            self.timeout,
            self.chain and self.chain.key,
        )
        return _key(self.model, content)

    def __repr__(self) -> str:
        return f"<GroupSpec {self.key}>"

    def __dask_tokenize__(self) -> object:
        return (type(self).__name__, self.key)


@dataclass(frozen=True)
class AutoSpec:
    """One job whose layout its group request chooses."""

    #: The model on workers of its own, its chain where it can be cut; no layout yet.
    group: GroupSpec
    #: Why it cannot be cut; empty where it has a chain.
    uncut: str = ""
    #: Whether shards divide it all the same.
    divides: bool = False
    #: Whether rows are texts.
    text: bool = False
    #: Rows and partitions to be predicted; None where metadata does not say.
    rows: int | None = None
    partitions: int = 1
    #: Name under which the job's times are remembered.
    rate_key: str = ""

    @property
    def key(self) -> str:
        """Name of the choice; it does not depend on what is chosen."""
        content = (self.group.key, self.rows, self.partitions, self.rate_key)
        return _key(self.group.model, content)

    def __repr__(self) -> str:
        return f"<AutoSpec {self.key}>"

    def __dask_tokenize__(self) -> object:
        return (type(self).__name__, self.key, self.uncut)


def _key(model: ModelSpec, content: object) -> str:
    digest = hashlib.sha256(repr(content).encode()).hexdigest()[:12]
    return f"{model.name}-{digest}"
