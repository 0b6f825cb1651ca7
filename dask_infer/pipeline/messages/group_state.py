"""What the coordinator tells feeders of a group; travels as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from dask_infer.spec.token_rules import TokenRules

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
    #: Names and dtypes of arguments that it casts, in order.
    dtypes: tuple[tuple[str, str], ...] = ()
    #: How a call takes tokens.
    tokens: TokenRules = field(default_factory=TokenRules)

    def to_message(self) -> dict[str, Any]:
        """Return what goes over the wire."""
        return {**vars(self), "tokens": self.tokens.to_message()}

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> Facts:
        """Return the facts that a message tells."""
        dtypes = tuple((name, dtype) for name, dtype in message["dtypes"])
        tokens = TokenRules.from_message(message["tokens"])
        return cls(**{**message, "dtypes": dtypes, "tokens": tokens})


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
            "facts": self.facts.to_message(),
            "instances": [dict(vars(instance)) for instance in self.instances],
        }

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> GroupState:
        """Return the state that a message tells."""
        return cls(
            **{
                **message,
                "facts": Facts.from_message(message["facts"]),
                "instances": tuple(
                    InstanceState(**{**each, "route": tuple(each["route"])})
                    for each in message["instances"]
                ),
            }
        )
