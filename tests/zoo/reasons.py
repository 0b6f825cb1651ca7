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
        r"^Git(Model|ForCausalLM), ragged",
        r"size depends on the whole batch",
        "its outputs hold an image's and a text's tokens on one axis, so padding "
        "cannot be cut off; pick other fields, or pass rows of one length",
    ),
    Reason(
        "meta",
        r"^SwitchTransformers",
        r"_apply\(\): Couldn't swap|depends on the values .*nonzero",
        "its router converts its own layer in each forward, which torch cannot do "
        "without data, and it picks the tokens of each expert by their values",
    ),
    Reason(
        "meta",
        r"^(NllbMoe|JetMoe)",
        r"depends on the values .*(nonzero|_local_scalar_dense)",
        "it picks the tokens of each expert by their values",
    ),
    Reason(
        "meta",
        r"^FSMT",
        r"depends on the values .*_local_scalar_dense",
        "it asks whether any token is padding",
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
        r"^SwitchTransformers.*two stages",
        r"cannot be split: .*_apply\(\): Couldn't swap",
        "its router converts its own layer in each forward, which torch cannot export",
    ),
    Reason(
        "refused",
        r"^CLIPSeg.*two stages",
        r"cannot be split: .*one number of rows",
        "code around its layers compares the number of rows, so torch exports it for "
        "one alone",
    ),
    Reason(
        "refused",
        r"^Funnel.*two stages",
        r"cannot be split: .*one number of tokens .*loops over them",
        "code around its layers loops over the tokens, so torch exports it for one "
        "length alone",
    ),
    Reason(
        "refused",
        r"^RecurrentGemma.*two stages",
        r"cannot be split: .*recurrent_states",
        "its layers keep their states between calls",
    ),
    Reason(
        "refused",
        r", logits_per_image$",
        r"logits_per_image",
        "`logits_per_image` compares all rows with all rows: it is no row's",
    ),
)


def explained(result: Result) -> Result:
    """Fill in the reason of a result, where one is needed and listed."""
    if result.outcome in ("meta", "refused"):
        found = (reason.why for reason in REASONS if reason.explains(result))
        result.reason = next(found, "")
    return result
