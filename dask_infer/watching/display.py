"""Where lines of progress are shown: a terminal, a notebook, a file.

Written here, in two escape codes: neither Dask nor torch brings tqdm or rich.
tqdm's bars in notebooks are widgets, of which nothing is left in a saved notebook, and
several of its bars need locks and places that a job's end must clean up; rich redirects
stdout and logging meanwhile.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import dataclass
from typing import Any, TextIO

from dask_infer.views.view import render

#: Seconds between two lines where they cannot be written over.
SELDOM = 10.0
#: Characters of a bar.
WIDTH = 24


@dataclass(frozen=True)
class ProgressLine:
    """How far one job is."""

    text: str
    #: Part that is done.
    fraction: float
    stopped: bool = False

    def __str__(self) -> str:
        bar = "#" * int(WIDTH * self.fraction)
        return f"[{bar.ljust(WIDTH)}] {self.text}"


class Terminal:
    """Lines that are written over in place."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self._height = 0

    def show(self, lines: list[ProgressLine], *, last: bool = False) -> None:
        """Write all lines again; the cursor stays on the last one until the end."""
        if not lines:
            return
        columns = shutil.get_terminal_size().columns - 1
        up = f"\x1b[{self._height - 1}A" if self._height > 1 else ""
        text = "\n".join(f"\r\x1b[2K{str(line)[:columns]}" for line in lines)
        self.file.write(up + text + "\n" * last)
        self.file.flush()
        self._height = len(lines)


class PlainText:
    """Lines that stay: files, pipes, terminals without escape codes."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self._shown = time.monotonic()

    def show(self, lines: list[ProgressLine], *, last: bool = False) -> None:
        """Write a line a job every ten seconds, and at the end."""
        now = time.monotonic()
        if lines and (last or now - self._shown >= SELDOM):
            self._shown = now
            self.file.write("".join(f"{line}\n" for line in lines))
            self.file.flush()


class Notebook:
    """An output of a cell that is replaced; the last one is saved with the notebook."""

    def __init__(self) -> None:
        from IPython.display import display

        self._handle = display(Lines([]), display_id=True)
        self._shown: list[ProgressLine] = []

    def show(self, lines: list[ProgressLine], *, last: bool = False) -> None:
        """Replace what the cell shows."""
        if lines != self._shown:
            self._shown = lines
            self._handle.update(Lines(lines))


class Lines:
    """Lines as text and HTML."""

    def __init__(self, lines: list[ProgressLine]) -> None:
        self.lines = lines

    def __repr__(self) -> str:
        return "\n".join(map(str, self.lines))

    def _repr_html_(self) -> str | None:
        return render("infer_progress.html.j2", lines=self.lines)


def open_display() -> Terminal | PlainText | Notebook:
    """Return what shows lines, always all of them, in the running program."""
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if hasattr(shell, "kernel"):
        return Notebook()
    file = sys.stderr
    if file.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        return Terminal(file)
    return PlainText(file)
