"""Arguments that are tokens: lists of ids, and text through a tokenizer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from dask_infer.batch.inputs.batch import Batch
from dask_infer.batch.inputs.columns import TextColumn
from dask_infer.batch.inputs.encode_options import ArgumentReader, EncodeOptions
from dask_infer.batch.inputs.list_columns import open_ids
from dask_infer.batch.tensor.rows import Positions, Rows
from dask_infer.batch.text.batch_padding import Padding, Side, pad
from dask_infer.batch.text.tokenize import IDS, Tokens, longest_text, tokenize
from dask_infer.errors import InputError
from dask_infer.spec import Argument


class IdsArgument(ArgumentReader):
    """Lists of integers of any length, padded under an attention mask."""

    signature = "ids"

    def __init__(
        self,
        series: pd.Series[Any],
        argument: Argument,
        options: EncodeOptions,
        place: int,
    ) -> None:
        self._series = series
        self._keyword = argument.keyword
        self._options = options
        rules = options.rules
        self._fill, self._unseen = 0, None
        if argument.keyword in IDS or (argument.keyword is None and place == 0):
            self._fill, self._unseen = rules.pad or 0, rules.unseen
        self._side: Side = "left" if rules.left else "right"
        self._rows: Rows | None
        try:
            self._rows = open_ids(series)
            self.lengths = self._rows.lengths
            self.bytes_per_row = 16 * int(self.lengths.mean()) if len(series) else 0
        except InputError:
            # A row is missing: only the batches that hold it are to fail.
            self._rows = None

    def add_to(self, batch: Batch, positions: Positions) -> None:
        """Add the rows as long as the longest of them, and their mask."""
        rows = self._rows
        if rows is None:
            rows, positions = open_ids(self._series.iloc[positions]), slice(None)
        block, mask = pad(rows, positions, self._fill, self._side)
        if self._unseen is not None:
            mask &= block != self._unseen
        padding = Padding(rows.lengths[positions], block.shape[1], self._side)
        given = {"attention_mask": self._options.wrap(mask.astype(np.int64), None)}
        batch.add(self._keyword, self._options.wrap(block, None))
        batch.add_tokens(given, padding)


class TextArgument(ArgumentReader):
    """Text through the tokenizer: keyword arguments, padded batch by batch."""

    def __init__(self, columns: list[pd.Series[Any]], options: EncodeOptions) -> None:
        self._options = options
        self._names = " and ".join(f'"{series.name}"' for series in columns)
        #: The texts; two columns are pairs.
        self._texts = [TextColumn(series) for series in columns]
        self.signature = ("tokens", longest_text(options.tokenizer))
        #: The partition's tokens; None where its texts failed together.
        self._tokens: Tokens | None = None
        try:
            self._tokens = self._tokenize([texts.present() for texts in self._texts])
        except InputError:
            raise
        except Exception:  # a text is bad: only the batches that hold it are to fail
            return
        self.lengths = self._tokens.padded_lengths
        self.truncated, self.masked = self._tokens.truncated, self._tokens.masked

    def add_to(self, batch: Batch, positions: Positions) -> None:
        """Add the tokens of the rows."""
        # Complains of what is missing or no text.
        texts = [column.take(positions, None).tolist() for column in self._texts]
        tokens = self._tokens
        if tokens is None:
            tokens, positions = self._tokenize_batch(texts), slice(None)
        arrays, padding = tokens.batch(positions)
        wrap = self._options.wrap
        batch.add_tokens(
            {key: wrap(value, None) for key, value in arrays.items()}, padding
        )

    def _tokenize(self, texts: list[list[str]]) -> Tokens:
        tokenizer, rules = self._options.tokenizer, self._options.rules
        assert tokenizer is not None
        return tokenize(texts, tokenizer, rules)

    def _tokenize_batch(self, texts: list[list[str]]) -> Tokens:
        try:
            tokens = self._tokenize(texts)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"the tokenizer failed on column {self._names}: "
                f"{type(error).__name__}: {error}"
            ) from error
        self.truncated += tokens.truncated
        return tokens
