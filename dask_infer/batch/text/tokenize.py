"""Text as tokens: a whole partition tokenized once, each batch padded on its own.

Tokens of a partition are end to end in one flat array a key, so that padding a batch is
a gather and never a loop over rows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np

from dask_infer.batch.tensor.rows import Array, Positions, Rows, join, offsets_of
from dask_infer.batch.text.batch_padding import (
    NOT_PADDED,
    Padding,
    Side,
    pad,
    padding_of,
)
from dask_infer.errors import InputError
from dask_infer.spec.token_rules import TokenRules

#: Texts, or first and second texts of pairs.
TextColumns = Sequence[list[str]]

#: Arguments that hold tokens of the model's vocabulary.
IDS = ("input_ids", "decoder_input_ids")

#: Beyond this a tokenizer's `model_max_length` means "unknown" (it is 1e30 then).
SANE_LENGTH = 10_000_000

#: Texts tokenized in one call: the lists of Python ints that come back are large.
CHUNK = 4096

#: A fast tokenizer keeps its truncation as state, and raises "Already borrowed" where
#: one thread sets it while another encodes. It runs on all cores by itself.
_tokenizing = threading.Lock()


def flat_rows(values: Sequence[Any], dtype: Any = None) -> Rows:
    """Return a list of lists or of arrays as ragged rows, end to end."""
    offsets = offsets_of(np.fromiter(map(len, values), np.int64, count=len(values)))
    if dtype is None:
        first = next((np.asarray(row) for row in values if len(row)), np.zeros(0, int))
        dtype = first.dtype
    if values and not isinstance(values[0], list | tuple):
        flat = np.concatenate([np.asarray(row, dtype) for row in values])
    else:
        flat = np.fromiter(chain.from_iterable(values), dtype, count=int(offsets[-1]))
    return Rows(flat, offsets)


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of a partition's texts."""

    #: What the tokenizer returned by key: ragged rows, or ``(n, ...)`` arrays.
    keys: Mapping[str, Rows | Array]
    #: Real tokens of each row; None where padding cannot be seen.
    lengths: Array | None
    #: What ragged rows are padded with, by key; 0 where nothing is named.
    fills: Mapping[str, int] = field(default_factory=dict)
    #: An attention mask is made from the lengths.
    mask: bool = False
    side: Side = "right"
    #: Texts cut at the tokenizer's largest length.
    truncated: int = 0

    @property
    def padded_lengths(self) -> Array | None:
        """Tokens that each row costs in a batch of its own."""
        values = self.keys.values()
        if self.lengths is None or any(isinstance(value, Rows) for value in values):
            return self.lengths
        return np.full(len(self.lengths), _width(self.keys))

    @property
    def masked(self) -> bool:
        """Whether the model is given an attention mask."""
        return self.mask or "attention_mask" in self.keys

    def batch(self, positions: Positions) -> tuple[dict[str, Array], Padding]:
        """Return the keyword arrays of a batch's rows, and how they are padded."""
        batch: dict[str, Array] = {}
        real = None
        for key, value in self.keys.items():
            if isinstance(value, Rows):
                fill = self.fills.get(key, 0)
                batch[key], mask = pad(value, positions, fill, self.side)
                real = mask if real is None else real
            else:
                whole = value.dtype.kind in "iub"
                batch[key] = value[positions].astype(np.int64 if whole else value.dtype)
        if self.mask and real is not None:
            batch["attention_mask"] = real.astype(np.int64)
        if self.lengths is None:
            return batch, NOT_PADDED
        return batch, Padding(self.lengths[positions], _width(batch), self.side)


def _width(values: Mapping[str, Any]) -> int:
    return next((v.shape[1] for v in values.values() if len(v.shape) > 1), 0)


def tokenize(
    columns: TextColumns, tokenizer: Callable[..., Any], rules: TokenRules
) -> Tokens:
    """Tokenize texts without padding.

    Parameters
    ----------
    columns
        The texts of a partition; where rows are pairs, the second texts too, which are
        the tokenizer's second argument.
    tokenizer
        A Hugging Face tokenizer, or any callable that takes a list of str and returns
        a dict of lists of lists, arrays or tensors. Lists of lists are padded with 0 on
        the right; ``(n, length)`` arrays with an attention mask are narrowed to the
        longest row of each batch where the callable itself pads to the longest; others
        stay as they are.
    rules
        What the model takes; where it is padded, and with what, unless the tokenizer
        says.

    Raises
    ------
    InputError
        Where the tokenizer returns no dict, another number of rows, or nothing that
        the model takes.
    """
    hugging_face = hasattr(tokenizer, "model_input_names") and hasattr(tokenizer, "pad")
    tokens = (_hugging_face if hugging_face else _callable)(columns, tokenizer, rules)
    taken = {key: value for key, value in tokens.keys.items() if _takes(rules, key)}
    if not taken:
        names = ", ".join(f'"{name}"' for name in sorted(rules.accepts or ()))
        raise InputError(
            "the model takes none of the tokenizer's outputs, only "
            f"{names or 'nothing'}; pass a tokenizer that returns those"
        )
    return replace(tokens, keys=taken, side="left" if rules.left else tokens.side)


def longest_text(tokenizer: Any) -> int | None:
    """Tokens at which texts are truncated; None where that is not known."""
    limit = getattr(tokenizer, "model_max_length", None)
    return int(limit) if limit and limit < SANE_LENGTH else None


def _hugging_face(columns: TextColumns, tokenizer: Any, rules: TokenRules) -> Tokens:
    limit = longest_text(tokenizer)
    parts: dict[str, list[Rows]] = {}
    truncated = 0
    # An empty partition gets its keys from one synthetic text.
    n = len(columns[0])
    for start in range(0, n or 1, CHUNK):
        chunk = [texts[start : start + CHUNK] or [""] for texts in columns]
        with _tokenizing:
            encoded = tokenizer(
                *chunk,
                truncation=limit is not None,
                max_length=limit,
                padding=False,
                return_attention_mask=False,
                verbose=False,
            )
        for key, values in encoded.items():
            if _takes(rules, key) or key == "input_ids":
                parts.setdefault(key, []).append(flat_rows(values[:n], np.int32))
        truncated += _truncated(tokenizer, encoded, chunk, limit)
    keys = {key: join(rows) for key, rows in parts.items()}
    # GPT-2 has no padding token: any will do under the mask.
    own = (tokenizer.pad_token_id, getattr(tokenizer, "eos_token_id", None))
    fills = {
        "input_ids": next((pad for pad in (rules.pad, *own) if pad is not None), 0),
        "token_type_ids": getattr(tokenizer, "pad_token_type_id", 0),
        "special_tokens_mask": 1,
    }
    masked = "attention_mask" in tokenizer.model_input_names
    return Tokens(
        keys,
        keys["input_ids"].lengths,
        fills,
        mask=masked and _takes(rules, "attention_mask"),
        side=tokenizer.padding_side,
        truncated=truncated,
    )


def _truncated(
    tokenizer: Any, encoded: Any, columns: TextColumns, limit: int | None
) -> int:
    """How many texts were cut; only those as long as the limit can be."""
    if limit is None:
        return 0
    ids = encoded["input_ids"]
    full = [i for i, row in enumerate(ids) if len(row) >= limit]
    if not full:
        return 0
    encodings = getattr(encoded, "encodings", None)
    if encodings is not None:
        return sum(bool(encodings[i].overflowing) for i in full)
    long = ([texts[i] for i in full] for texts in columns)
    whole = tokenizer(*long, truncation=False, verbose=False)
    return sum(len(row) > limit for row in whole["input_ids"])


def _callable(
    columns: TextColumns, tokenizer: Callable[..., Any], rules: TokenRules
) -> Tokens:
    """Call a user's tokenizer, whose arrays are unpadded where it pads them itself."""
    encoded = tokenizer(*map(list, columns))
    if not isinstance(encoded, Mapping):
        raise InputError(
            f"the tokenizer returned {type(encoded).__name__}, not a dict; return the "
            "model's keyword arguments by name"
        )
    n = len(columns[0])
    keys = {str(key): _value(key, value, n) for key, value in encoded.items()}
    fills = {key: rules.pad or 0 for key in IDS}
    found, masked = NOT_PADDED, "attention_mask" in keys
    if masked:
        keys = {key: _squared(value) for key, value in keys.items()}
        mask = keys["attention_mask"]
        if isinstance(mask, np.ndarray) and mask.ndim == 2 and mask.size:
            found = padding_of(mask.astype(bool))
    moved = rules.left and found.side == "right"
    if found.cuts and (moved or _pads_to_longest(columns, tokenizer, found.width)):
        real = np.asarray(keys["attention_mask"], bool)
        for key, value in keys.items():
            if not isinstance(value, Rows) and value.shape == real.shape:
                keys[key] = Rows(value[real], offsets_of(real.sum(axis=1)))
                fills[key] = value[~real][0].item()
    ragged = next((value for value in keys.values() if isinstance(value, Rows)), None)
    lengths = found.lengths
    if lengths is None and ragged is not None:
        lengths = ragged.lengths
    unmasked = ragged is not None and not masked
    made = unmasked and _takes(rules, "attention_mask")
    return Tokens(keys, lengths, fills, mask=made, side=found.side)


def _pads_to_longest(
    columns: TextColumns, tokenizer: Callable[..., Any], width: int
) -> bool:
    """Whether the shortest row alone comes back narrower than all together."""
    shortest = min(zip(*columns, strict=True), key=lambda row: sum(map(len, row)))
    alone = tokenizer(*([text] for text in shortest))
    return int(np.shape(alone["attention_mask"])[1]) < width


def _value(key: object, value: Any, n: int) -> Rows | Array:
    rows: Rows | Array
    if isinstance(value, list | tuple) and value and np.ndim(value[0]) == 1:
        rows, count = flat_rows(value), len(value)
    else:
        rows = np.asarray(value).copy()  # a tokenizer may reuse its memory
        count = len(rows) if rows.ndim else 0
    if count != n:
        raise InputError(
            f'the tokenizer returned {count} rows of "{key}" for {n} texts; return '
            "one row for each text"
        )
    return rows


def _squared(value: Rows | Array) -> Rows | Array:
    """Return lists that a tokenizer has padded itself as the array they are."""
    if not isinstance(value, Rows) or len(set(value.lengths.tolist())) != 1:
        return value
    return value.values.reshape(len(value), -1)


def _takes(rules: TokenRules, key: str) -> bool:
    return rules.accepts is None or key in rules.accepts
