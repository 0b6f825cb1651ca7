"""How a call of a model takes rows of tokens, and what it returns of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TokenRules:
    """What has to be known to pad rows for a model; travels to its feeders."""

    #: Keyword arguments that the call takes; None where any, or unknown.
    accepts: frozenset[str] | None = None
    #: It names an ``attention_mask``: rows of any length may be padded.
    masked: bool = False
    #: The model's own padding token; None where it has none.
    pad: int | None = None
    #: Rows are continued at their right end, so padding stands on the left.
    left: bool = False
    #: It looks for the last token that is not padding, and has no padding token: a
    #: forward takes one row.
    alone: bool = False
    #: Padding changes what it computes of other tokens: a forward takes rows of equal
    #: length.
    equal_lengths: bool = False
    #: A token that it takes for padding wherever it stands, if no mask is given.
    unseen: int | None = None
    #: The model's own settings of ``generate``; None for other calls.
    generation: tuple[tuple[str, Any], ...] | None = None
