"""Why a case needs ``meta=`` or is refused: each reason is one that a reader can check.

An outcome that no entry explains is a fault of the library or of the zoo.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.zoo.judge import Result


@dataclass(frozen=True)
class Reason:
    """Names of cases, what the library says, and why it is true."""

    outcome: str
    names: str
    says: str
    why: str

    def explains(self, result: Result) -> bool:
        """Whether the case and what was said are this reason's."""
        same = self.outcome == result.outcome
        named = re.search(self.names, result.name) is not None
        return same and named and re.search(self.says, result.detail) is not None


REASONS = (
    Reason(
        "meta",
        r"ForSequenceClassification",
        r"depends on the values .*unique_consecutive",
        "it counts the end tokens of each row and refuses unequal numbers",
    ),
    Reason(
        "meta",
        r"^(Longformer|LED)",
        r"depends on the values .*_local_scalar_dense",
        "it asks the mask whether a token attends globally",
    ),
    Reason(
        "meta",
        r"^(XLM|Flaubert)(Model|WithLM|ForS)",
        r"depends on the values .*_local_scalar_dense",
        "it compares the lengths of texts with the batch",
    ),
    Reason(
        "meta",
        r"^Xmod",
        r"depends on the values .*nonzero",
        "it picks the rows of each language",
    ),
    Reason(
        "meta",
        r"^Vilt",
        r"depends on the values .*_local_scalar_dense",
        "it takes as many patches as the largest image has",
    ),
    Reason(
        "refused",
        r"^FNet.*ragged",
        r"row 4 holds 6 values .*preprocess=",
        "it mixes all tokens and takes no `attention_mask`, so rows must be of one "
        "length (the row that is not is named once it is read)",
    ),
    Reason(
        "meta",
        r"^PatchExtractor",
        r"before it is fitted",
        "fitting leaves nothing behind that tells the size of its patches",
    ),
    Reason(
        "refused",
        r"all fields",
        r"logits_per_image",
        "`logits_per_image` compares all rows with all rows; the embeddings can be "
        "picked by `output=`",
    ),
)


def explained(result: Result) -> Result:
    """Fill in the reason of a result, where one is needed and listed."""
    if result.outcome in ("meta", "refused"):
        found = (reason.why for reason in REASONS if reason.explains(result))
        result.reason = next(found, "")
    return result
