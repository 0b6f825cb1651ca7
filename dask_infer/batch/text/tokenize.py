"""Text as tokens: a whole partition tokenised once, each batch padded on its own.

Tokens of a partition lie end to end in one flat array a key, so that padding a batch is
a gather and never a loop over rows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from dask_infer.errors import InputError

Array = npt.NDArray[Any]
Rows = slice | npt.NDArray[np.int64]
Side = Literal["left", "right"]

#: Texts, or first and second texts of pairs.
Columns = Sequence[list[str]]

#: Arguments that hold tokens of the model's vocabulary.
IDS = ("input_ids", "decoder_input_ids")

#: Beyond this a tokenizer's `model_max_length` means "unknown" (it is 1e30 then).
SANE_LENGTH = 10_000_000

#: Texts tokenised in one call: the lists of Python ints that come back are large.
CHUNK = 4096

#: A fast tokenizer keeps its truncation as state, and raises "Already borrowed" where
#: one thread sets it while another encodes. It runs on all cores by itself.
_tokenizing = threading.Lock()


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of differing length, end to end."""

    flat: Array
    #: ``(n + 1,)`` where rows start, and the end of the last.
    offsets: npt.NDArray[np.int64]
    #: Value that fills short rows.
    fill: int = 0

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Length of each row."""
        return np.diff(self.offsets)

    def padded(self, rows: Rows, side: Side = "right") -> tuple[Array, Array]:
        """Return `rows` as a ``(b, longest)`` array, and the mask of what is real.

        Never narrower than one column: models fail on no tokens at all.
        """
        starts, ends = self.offsets[:-1][rows], self.offsets[1:][rows]
        lengths = ends - starts
        width = max(1, int(lengths.max(initial=0)))
        mask = real_tokens(lengths, width, side)
        dtype = np.int64 if self.flat.dtype.kind in "iub" else self.flat.dtype
        block = np.full((len(lengths), width), self.fill, dtype)
        shift = starts - (np.cumsum(lengths) - lengths)
        block[mask] = self.flat[np.repeat(shift, lengths) + np.arange(lengths.sum())]
        return block, mask


def real_tokens(lengths: Array, width: int, side: Side = "right") -> Array:
    """``(n, width)`` mask: True where a row has a token, False where padding."""
    position = np.arange(width)
    if side == "left":
        return np.asarray(position >= width - lengths[:, None])
    return np.asarray(position < lengths[:, None])


def padding_side(real: Array) -> Side | None:
    """Return where a mask has its padding; None where that is on neither side."""
    lengths, width = real.sum(axis=1), real.shape[1]
    sides: tuple[Side, ...] = ("right", "left")
    alike = (s for s in sides if np.array_equal(real, real_tokens(lengths, width, s)))
    return next(alike, None)


def ragged(values: Sequence[Any], fill: int = 0, dtype: Any = None) -> Ragged:
    """Lay a list of lists or of arrays end to end."""
    lengths = np.fromiter(map(len, values), np.int64, count=len(values))
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    if dtype is None:
        first = next((np.asarray(row) for row in values if len(row)), np.zeros(0, int))
        dtype = first.dtype
    if values and not isinstance(values[0], list | tuple):
        flat = np.concatenate([np.asarray(row, dtype) for row in values])
    else:
        flat = np.fromiter(chain.from_iterable(values), dtype, count=int(offsets[-1]))
    return Ragged(flat, offsets, fill)


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of a partition's texts."""

    #: What the tokenizer returned by key: ragged rows, or ``(n, ...)`` arrays.
    keys: Mapping[str, Ragged | Array]
    #: Real tokens of each row; None where nothing tells padding from tokens.
    lengths: npt.NDArray[np.int64] | None
    #: An attention mask is made from the lengths.
    mask: bool = False
    side: Side = "right"
    #: Texts cut at the tokenizer's largest length.
    truncated: int = 0

    @property
    def padded_lengths(self) -> npt.NDArray[np.int64] | None:
        """Tokens that each row costs in a batch of its own."""
        if self.lengths is None or any(
            isinstance(v, Ragged) for v in self.keys.values()
        ):
            return self.lengths
        return np.full(len(self.lengths), _width(cast(Any, self.keys)))

    @property
    def masked(self) -> bool:
        """Whether the model is given an attention mask."""
        return self.mask or "attention_mask" in self.keys

    def batch(self, rows: Rows) -> tuple[dict[str, Array], int]:
        """Return the keyword arrays of `rows`, and the length they are padded to."""
        batch: dict[str, Array] = {}
        real = None
        for key, value in self.keys.items():
            if isinstance(value, Ragged):
                batch[key], mask = value.padded(rows, self.side)
                real = mask if real is None else real
            else:
                batch[key] = _own(value[rows])
        if self.mask and real is not None:
            batch["attention_mask"] = real.astype(np.int64)
        return batch, _width(batch)


def _own(values: Array) -> Array:
    """Copy; integers of any width become int64."""
    return values.astype(np.int64 if values.dtype.kind in "iub" else values.dtype)


def _width(batch: Mapping[str, Array]) -> int:
    wide = (value.shape[1] for value in batch.values() if value.ndim > 1)
    return next(wide, 0)


@dataclass(eq=False)
class _Collected:
    """Lists of tokens, chunk by chunk made flat."""

    parts: dict[str, list[Ragged]] = field(default_factory=dict)
    truncated: int = 0

    def add(self, key: str, values: Sequence[Sequence[int]], fill: int) -> None:
        part = ragged(values, fill, np.int32)
        self.parts.setdefault(key, []).append(part)

    def joined(self) -> dict[str, Ragged]:
        return {key: _join(parts) for key, parts in self.parts.items()}


def _join(parts: Sequence[Ragged]) -> Ragged:
    lengths = np.concatenate([part.lengths for part in parts])
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    flat = np.concatenate([part.flat for part in parts])
    return Ragged(flat, offsets, parts[0].fill)


def tokenize(
    texts: Sequence[str],
    tokenizer: Callable[..., Any],
    *,
    pairs: Sequence[str] | None = None,
    accepts: frozenset[str] | None = None,
    max_length: int | None = None,
    side: Side | None = None,
    pad: int | None = None,
) -> Tokens:
    """Tokenise `texts` without padding.

    Parameters
    ----------
    texts
        The texts of a partition.
    tokenizer
        A Hugging Face tokenizer, or any callable that takes a list of str and returns
        a dict of lists of lists, arrays or tensors. Lists of lists are padded with 0 on
        the right; ``(n, length)`` arrays with an attention mask are narrowed to the
        longest row of each batch where the callable itself pads to the longest; others
        stay as they are.
    pairs
        The second text of each row, where rows are pairs; it is the tokenizer's second
        argument.
    accepts
        Keyword arguments the model takes; None where unknown. Others are dropped.
    max_length
        Most tokens the model takes, where it is fewer than the tokenizer says.
    side
        Where rows will be padded; None as the tokenizer says.
    pad
        The model's own padding token; None takes the tokenizer's.

    Raises
    ------
    InputError
        Where the tokenizer returns no dict, another number of rows, or nothing that
        the model takes.
    """
    columns = [list(texts)] if pairs is None else [list(texts), list(pairs)]
    if is_hugging_face(tokenizer):
        tokens = _hugging_face(columns, tokenizer, accepts, max_length, pad)
    else:
        tokens = _callable(columns, tokenizer, accepts, side, pad)
    if not tokens.keys:
        raise InputError(
            "the model takes none of the tokenizer's outputs, only "
            f"{_listed(accepts or ())}; pass a tokenizer that returns those"
        )
    return tokens if side is None else replace(tokens, side=side)


def is_hugging_face(tokenizer: object) -> bool:
    """Whether `tokenizer` is one of transformers' own; never imports it."""
    return hasattr(tokenizer, "model_input_names") and hasattr(tokenizer, "pad")


def longest_text(tokenizer: Any, max_length: int | None = None) -> int | None:
    """Tokens at which texts are truncated; None where nobody tells."""
    told = getattr(tokenizer, "model_max_length", None)
    limits = [limit for limit in (told, max_length) if limit and limit < SANE_LENGTH]
    return int(min(limits)) if limits else None


def _hugging_face(
    columns: Columns,
    tokenizer: Any,
    accepts: frozenset[str] | None,
    max_length: int | None,
    pad: int | None,
) -> Tokens:
    limit = longest_text(tokenizer, max_length)
    fills = _fills(tokenizer, pad)
    collected = _Collected()
    # An empty partition gets its keys from one made-up text.
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
            if _takes(accepts, key) or key == "input_ids":
                collected.add(key, values[:n], fills.get(key, 0))
        collected.truncated += _truncated(tokenizer, encoded, chunk, limit)
    keys = collected.joined()
    lengths = keys["input_ids"].lengths
    names = tokenizer.model_input_names
    return Tokens(
        {key: value for key, value in keys.items() if _takes(accepts, key)},
        lengths,
        mask="attention_mask" in names and _takes(accepts, "attention_mask"),
        side=tokenizer.padding_side,
        truncated=collected.truncated,
    )


def _fills(tokenizer: Any, pad: int | None) -> dict[str, int]:
    """Return padding by key. GPT-2 has no padding token: any will do under the mask."""
    padding = tokenizer.pad_token_id if pad is None else pad
    if padding is None:
        padding = tokenizer.eos_token_id
    return {
        "input_ids": padding or 0,
        "token_type_ids": getattr(tokenizer, "pad_token_type_id", 0),
        "special_tokens_mask": 1,
    }


def _truncated(
    tokenizer: Any, encoded: Any, columns: Columns, limit: int | None
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
    columns: Columns,
    tokenizer: Callable[..., Any],
    accepts: frozenset[str] | None,
    wanted: Side | None,
    pad: int | None,
) -> Tokens:
    keys, lengths, side = _keys(columns, tokenizer, wanted, pad or 0)
    first = next((value for value in keys.values() if isinstance(value, Ragged)), None)
    if lengths is None and first is not None:
        lengths = first.lengths
    return Tokens(
        {key: value for key, value in keys.items() if _takes(accepts, key)},
        lengths,
        mask=(
            first is not None
            and "attention_mask" not in keys
            and _takes(accepts, "attention_mask")
        ),
        side=side,
    )


def _keys(
    columns: Columns, tokenizer: Callable[..., Any], wanted: Side | None, pad: int
) -> tuple[dict[str, Ragged | Array], npt.NDArray[np.int64] | None, Side]:
    """Call a user's tokenizer; return its keys, real lengths and padding side."""
    encoded = tokenizer(*map(list, columns))
    if not isinstance(encoded, Mapping):
        raise InputError(
            f"the tokenizer returned {type(encoded).__name__}, not a dict; return the "
            "model's keyword arguments by name"
        )
    keys = {
        str(key): _value(key, value, len(columns[0]), pad * (key in IDS))
        for key, value in encoded.items()
    }
    if "attention_mask" in keys:
        keys = {key: _squared(value) for key, value in keys.items()}
    mask = keys.get("attention_mask")
    if not isinstance(mask, np.ndarray) or mask.ndim != 2 or not mask.size:
        return keys, None, "right"
    real = mask.astype(bool)
    side = padding_side(real)
    if side is None:
        return keys, None, "right"
    lengths = real.sum(axis=1)
    moved = wanted is not None and wanted != side
    if not real.all() and (
        moved or _pads_to_longest(columns, tokenizer, real.shape[1])
    ):
        keys = {key: _unpadded(value, real) for key, value in keys.items()}
    return keys, lengths, side


def _pads_to_longest(
    columns: Columns, tokenizer: Callable[..., Any], width: int
) -> bool:
    """Whether the shortest row alone comes back narrower than all together."""
    shortest = min(zip(*columns, strict=True), key=lambda row: sum(map(len, row)))
    alone = tokenizer(*([text] for text in shortest))
    return int(np.shape(alone["attention_mask"])[1]) < width


def _value(key: object, value: Any, n: int, fill: int) -> Ragged | Array:
    if isinstance(value, list | tuple) and value and np.ndim(value[0]) == 1:
        rows: Ragged | Array = ragged(value, fill)
        count = len(value)
    else:
        rows = np.asarray(value).copy()  # a tokenizer may reuse its memory
        count = len(rows) if rows.ndim else 0
    if count != n:
        raise InputError(
            f'the tokenizer returned {count} rows of "{key}" for {n} texts; return '
            "one row for each text"
        )
    return rows


def _squared(value: Ragged | Array) -> Ragged | Array:
    """Return lists that a tokenizer has padded itself as the array they are."""
    if not isinstance(value, Ragged) or len(set(value.lengths.tolist())) != 1:
        return value
    return value.flat.reshape(len(value.lengths), -1)


def _unpadded(value: Ragged | Array, real: Array) -> Ragged | Array:
    if isinstance(value, Ragged) or value.shape != real.shape:
        return value
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(real.sum(axis=1))])
    padding = value[~real]
    return Ragged(value[real], offsets, padding[0].item() if len(padding) else 0)


def _takes(accepts: frozenset[str] | None, key: str) -> bool:
    return accepts is None or key in accepts


def _listed(names: Any) -> str:
    return ", ".join(f'"{name}"' for name in sorted(names)) or "nothing"
