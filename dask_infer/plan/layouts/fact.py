"""A fact that layouts are projected from, as it is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Source = Literal["measured", "projected", "assumed"]


@dataclass(frozen=True)
class Fact:
    """One fact in words, and where it comes from."""

    name: str
    value: str
    source: Source
