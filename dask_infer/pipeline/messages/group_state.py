"""The state of a group, as the coordinator describes it to feeders."""

from __future__ import annotations

import pickle
import zlib
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from dask_infer.spec.model_spec import Interface
from dask_infer.spec.token_rules import TokenRules

#: forming: not all stages serve yet. ready: at least one instance does. refused: it
#: cannot be placed, or a stage cannot be loaded. released: its stages were cancelled.
Status = Literal["forming", "ready", "refused", "released"]


class Target(NamedTuple):
    """An instance, one complete copy of the model, to which microbatches are sent."""

    name: str
    #: Counts its re-formations.
    epoch: int
    #: Addresses of the shards of each stage, in order; one where it has no shards.
    stages: tuple[tuple[str, ...], ...]
    #: Whether all stages serve.
    ready: bool = True

    @property
    def route(self) -> tuple[str, ...]:
        """Addresses of the first shard of each stage."""
        return tuple(shards[0] for shards in self.stages)

    def stage_at(self, address: str) -> int:
        """Return the stage of which a worker holds a shard."""
        return next(n for n, shards in enumerate(self.stages) if address in shards)


@dataclass(frozen=True)
class ModelFacts:
    """What feeders must know of a model that is not in their process."""

    interface: Interface = "tensor"
    #: Name of the model's floating dtype; None where it has none.
    floating: str | None = None
    #: Names and dtypes of arguments that it casts, in order.
    dtypes: tuple[tuple[str, str], ...] = ()
    #: How a call takes tokens.
    tokens: TokenRules = field(default_factory=TokenRules)
    #: Kind of the device that holds it.
    kind: str = "cpu"


@dataclass(frozen=True)
class GroupState:
    """A group at one moment."""

    #: Rises with every change that feeders are informed of.
    version: int
    status: Status
    instances: tuple[Target, ...] = ()
    facts: ModelFacts = field(default_factory=ModelFacts)
    #: Rows of a microbatch; None where the feeders' own policy finds them.
    microbatch: int | None = None
    #: The exception of a group that was refused, pickled: it may not be importable.
    error: bytes | None = None

    @property
    def serving(self) -> tuple[Target, ...]:
        """The instances of which all stages serve."""
        return tuple(each for each in self.instances if each.ready)

    def packed(self) -> bytes:
        """Return it as it travels: compressed, since addresses resemble each other."""
        return zlib.compress(pickle.dumps(self), 1)

    @classmethod
    def unpacked(cls, packed: bytes) -> GroupState:
        """Return what was packed."""
        state: GroupState = pickle.loads(zlib.decompress(packed))
        return state
