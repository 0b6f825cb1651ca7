"""The failed rows of a partition, counted, until they are no longer the cause.

A failure is a row that failed alone, or a batch that could not be split further. Two
rules stop a partition, neither before four failures:

- all its rows failed with the same words;
- it has ten rows or more, and more of them failed than the share allows.

A model that fails on everything is detected sooner: where the first four failures are
alike and nothing has succeeded, rows drawn at random are tried alone. If all of them
fail with the same words, more than the share is bad, with one error in a million.
"""

from __future__ import annotations

import math
from collections import Counter

#: Failures before any rule applies.
FEWEST_FAILURES = 4

#: Rows of a partition before a share of them means anything.
FEWEST_ROWS = 10

#: How often a partition may be stopped wrongly by rows drawn at random.
DOUBT = 1e-6

#: Different messages that are kept.
MESSAGES = 3


class ErrorBudget:
    """Failed and predicted rows of a partition of so many `rows`.

    `share` is the largest part of them that may fail; 1 allows all.
    """

    def __init__(self, rows: int, share: float) -> None:
        self.rows, self.share = rows, share
        #: Rows that failed, and rows that have a prediction.
        self.failed = self.succeeded = 0
        self._failures = 0
        #: First label and number of rows of the first few messages.
        self._messages: dict[str, str] = {}
        self._counts: Counter[str] = Counter()
        self._drawn = False

    def __repr__(self) -> str:
        failed, predicted = self.failed, self.succeeded
        return f"<ErrorBudget {failed} failed, {predicted} of {self.rows} predicted>"

    def fail(self, rows: int, label: str, message: str) -> None:
        """Count rows that failed, the first of them under `label`."""
        self.failed += rows
        self._failures += 1
        if message not in self._messages and len(self._messages) < MESSAGES:
            self._messages[message] = label
        self._counts[message if message in self._messages else ""] += rows

    @property
    def alike(self) -> bool:
        """Whether all failures so far have the same message."""
        return len(self._counts) == 1

    @property
    def first(self) -> str:
        """The first failure: row and message."""
        message, label = next(iter(self._messages.items()))
        return f"row {label}: {message}"

    def messages(self) -> str:
        """Return the first few messages: row, text, and how many rows failed so."""
        texts = [
            f"row {label}: {message} ({self._counts[message]} rows)"
            for message, label in self._messages.items()
        ]
        if self._counts[""]:
            texts.append(f"other messages ({self._counts['']} rows)")
        return "; ".join(texts)

    def stops(self) -> str | None:
        """Return why no more rows should be left out, or None."""
        if self.share >= 1 or self._failures < FEWEST_FAILURES:
            return None
        if self.failed == self.rows and self.alike:
            return f"all {self.rows} rows of a partition failed alike"
        if self.rows >= FEWEST_ROWS and self.failed > self.share * self.rows:
            return (
                f"{self.failed} of {self.rows} rows of a partition failed, more than "
                f"the share of {self.share:g} that infer.errors.max-fraction allows"
            )
        return None

    def draws(self) -> int:
        """How many rows to draw at random now and to try; 0 for none, or not again."""
        if (
            self._drawn
            or not 0 < self.share < 1
            or self._failures < FEWEST_FAILURES
            or self.succeeded
            or not self.alike
        ):
            return 0
        self._drawn = True
        draws = math.ceil(math.log(DOUBT) / math.log(self.share))
        return draws if draws * 4 <= self.rows else 0
