"""The state of a group, as the coordinator describes it to feeders."""

from __future__ import annotations

import pickle
import zlib
from dataclasses import dataclass, field
from typing import Literal

from dask_infer.spec.model_spec import Interface
from dask_infer.spec.token_rules import TokenRules

#: forming: not all stages serve yet. ready: at least one instance does. refused: it
#: cannot be placed, or a stage cannot be loaded. released: its stages were cancelled.
Status = Literal["forming", "ready", "refused", "released"]


@dataclass(frozen=True)
class InstanceState:
    """One complete copy of the model, spread over its stages."""

    name: str
    #: Counts its re-formations.
    epoch: int
    #: Addresses of the workers that hold its stages, in order; of a stage in shards
    #: that of the first one.
    route: tuple[str, ...]
    ready: bool
    #: Addresses of the other shards of each stage; empty where stages have none.
    followers: tuple[tuple[str, ...], ...] = ()


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
    instances: tuple[InstanceState, ...] = ()
    facts: ModelFacts = field(default_factory=ModelFacts)
    #: Rows of a microbatch; None where the feeders' own policy finds them.
    microbatch: int | None = None
    #: The exception of a group that was refused, pickled: it may not be importable.
    error: bytes | None = None

    def packed(self) -> bytes:
        """Return it as it travels: compressed, since addresses resemble each other."""
        return zlib.compress(pickle.dumps(self), 1)

    @classmethod
    def unpacked(cls, packed: bytes) -> GroupState:
        """Return what was packed."""
        state: GroupState = pickle.loads(zlib.decompress(packed))
        return state
