"""What the ledger tells feeders of a group; travels as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

#: forming: not all stages serve yet. ready: at least one instance does. refused: it
#: cannot be placed, or its stages cannot be loaded. released: let go of.
Status = Literal["forming", "ready", "refused", "released"]


@dataclass(frozen=True)
class InstanceState:
    """One complete copy of the model, spread over its stages."""

    name: str
    #: Counts its re-formations.
    epoch: int
    #: Addresses of the workers that hold its stages, in order.
    route: tuple[str, ...]
    ready: bool


@dataclass(frozen=True)
class Facts:
    """What feeders must know of a model that is not in their process."""

    interface: Any = "tensor"
    #: Name of the model's floating dtype; None where it has none.
    floating: str | None = None
    #: Keyword arguments that a call takes; None for any.
    accepts: tuple[str, ...] | None = None
    #: Names and dtypes of arguments that it casts, in order.
    dtypes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class GroupState:
    """A group at one moment."""

    #: Rises with every change.
    version: int
    status: Status
    instances: tuple[InstanceState, ...] = ()
    facts: Facts = field(default_factory=Facts)
    #: Microbatches that one instance admits.
    window: int = 2
    #: Rows of a microbatch; None where the feeders' own policy finds them.
    microbatch: int | None = None
    #: Tasks that feed it now.
    feeders: int = 0
    #: The pickled exception of a group that was refused.
    error: bytes | None = None

    def to_message(self) -> dict[str, Any]:
        """Return what goes over the wire."""
        return {
            **vars(self),
            "facts": dict(vars(self.facts)),
            "instances": [dict(vars(instance)) for instance in self.instances],
        }

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> GroupState:
        """Return the state that a message tells."""
        facts, accepts = message["facts"], message["facts"]["accepts"]
        return cls(
            **{
                **message,
                "facts": Facts(
                    **{**facts, "accepts": None if accepts is None else tuple(accepts)}
                ),
                "instances": tuple(
                    InstanceState(**{**each, "route": tuple(each["route"])})
                    for each in message["instances"]
                ),
            }
        )
