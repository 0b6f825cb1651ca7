"""What ``parallel="auto"`` is chosen from, once workers are known."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from dask_infer.spec.group_spec import GroupSpec


@dataclass(frozen=True)
class AutoSpec:
    """One job whose layout its group request chooses."""

    #: The model on workers of its own, its chain where it can be cut; no layout yet.
    group: GroupSpec
    #: Why it cannot be cut; empty where it has a chain.
    uncut: str = ""
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
        digest = hashlib.sha256(repr(content).encode()).hexdigest()[:12]
        return f"{self.group.model.name}-{digest}"

    def __repr__(self) -> str:
        return f"<AutoSpec {self.key}>"

    def __dask_tokenize__(self) -> object:
        return (type(self).__name__, self.key, self.uncut)
