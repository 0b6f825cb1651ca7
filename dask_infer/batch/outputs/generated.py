"""What ``generate`` returns, each row as it comes out alone: without padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dask_infer.batch.inputs.batch import Batch
from dask_infer.batch.outputs.convert import to_array
from dask_infer.batch.tensor.rows import Array
from dask_infer.spec import Outputs
from dask_infer.spec.token_rules import TokenRules

#: Field that holds the sequences where ``generate`` returns several.
SEQUENCES = "sequences"

#: What transformers takes where nothing limits a sequence: 20 tokens after the prompt.
DEFAULT_LENGTH = 20


class Generation:
    """How the sequences of one job end.

    Parameters
    ----------
    rules
        The model's, with its own settings.
    call_kwargs
        The user's, which come before those.
    outputs
        The promised columns.
    """

    def __init__(
        self, rules: TokenRules, call_kwargs: Mapping[str, Any], outputs: Outputs
    ) -> None:
        given = vars(call_kwargs.get("generation_config") or TokenRules())
        own = {name: given.get(name) for name, _ in rules.generation or ()}
        own = {name: value for name, value in own.items() if value is not None}
        self._settings = {**dict(rules.generation or ()), **own, **call_kwargs}
        #: Sequences begin with the prompt.
        self._continues = rules.left
        columns = outputs.columns
        named = (c.name for c in columns if SEQUENCES in (c.field, c.name))
        #: Column of the sequences.
        self._name = next(named, columns[0].name if len(columns) == 1 else None)

    @property
    def equal_lengths(self) -> bool:
        """Whether a padded row would not be what it is alone.

        Lengths that count the prompt count its padding, and padding counts as
        something that was said before.
        """
        if not self._continues:
            return False
        get = self._settings.get
        longest, shortest = get("max_length"), get("min_length")
        return (
            (longest not in (None, DEFAULT_LENGTH) and not get("max_new_tokens"))
            or (bool(shortest) and not get("min_new_tokens"))
            or get("repetition_penalty") not in (None, 1, 1.0)
            or bool(get("no_repeat_ngram_size"))
        )

    @property
    def unseen(self) -> int | None:
        """The token that ``generate`` takes for padding in a prompt without a mask."""
        pads = _tokens(self._settings.get("pad_token_id"))
        ends = _tokens(self._settings.get("eos_token_id"))
        return next((int(pad) for pad in pads if pad not in ends), None)

    def unpadded(self, picked: dict[Any, Any], batch: Batch) -> dict[Any, Any]:
        """Return what `pick` found in an output, its sequences without padding."""
        key = self._name if self._name in picked else None
        sequences = None if key not in picked else to_array(picked[key])
        if sequences is None or sequences.ndim != 2:
            return picked
        # Other models begin with a start token: no end, though it may be the same.
        prompt = _prompt_width(batch) if self._continues else 1
        starts, padding = np.zeros(len(sequences), np.int64), batch.padding
        if self._continues and padding.side == "left" and padding.lengths is not None:
            starts = prompt - padding.lengths
        stops = self._stops(sequences, prompt)
        cuts = zip(sequences, starts, stops, strict=True)
        rows = [row[start:stop].copy() for row, start, stop in cuts]
        return {**picked, key: rows}

    def _stops(self, sequences: Array, prompt: int) -> Array:
        """Return where the padding behind each sequence begins."""
        ends = _tokens(self._settings.get("eos_token_id"))
        width = sequences.shape[1]
        found = np.isin(sequences[:, prompt:], ends)
        ended = found.any(axis=1)
        if not found.size:
            return np.full(len(sequences), width)
        stops: Array = np.where(ended, prompt + 1 + found.argmax(axis=1), width)
        get = self._settings.get
        if get("stop_strings") or get("stopping_criteria"):
            fills = [*_tokens(get("pad_token_id")), *ends][:1]
            said = ~np.isin(sequences, fills)
            last = width - said[:, ::-1].argmax(axis=1)
            stops = np.where(ended, stops, np.maximum(last, prompt))
        return stops


def _tokens(given: Any) -> list[int]:
    """Return one token, several, or None as a list."""
    return [] if given is None else np.ravel(np.asarray(given)).tolist()


def _prompt_width(batch: Batch) -> int:
    """Tokens of the prompt that a decoder returns; none of embeddings."""
    ids = batch.kwargs.get("input_ids", batch.kwargs.get("inputs"))
    if ids is None and batch.args:
        ids = batch.args[0]
    return 0 if ids is None else int(ids.shape[1])
