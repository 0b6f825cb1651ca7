"""A standard error without the graph that torch prints where an export fails.

Another tier may still split the model, and a refusal says what failed and where. Torch
(2.13) writes the graph so far straight to ``sys.stderr``: hundreds of lines for a
language model.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def without_graphs() -> Iterator[None]:
    """Leave graphs out of what is written to ``sys.stderr`` meanwhile."""
    with contextlib.redirect_stderr(_WithoutGraphs(sys.stderr)):
        yield


class _WithoutGraphs(io.TextIOBase):
    """Passes on all other writes, of all threads."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._dropped = False

    def write(self, text: str) -> int:
        dropped, self._dropped = self._dropped, False
        if text.lstrip().startswith("def forward(self") and "torch.ops." in text:
            self._dropped = True
            return len(text)
        if dropped and text == "\n":  # the end of what was printed
            return len(text)
        return int(self._stream.write(text))

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return bool(self._stream.isatty())

    def fileno(self) -> int:
        return int(self._stream.fileno())
