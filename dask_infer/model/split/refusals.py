"""Why a model cannot be split, in the user's words, with the line at fault."""

from __future__ import annotations

import difflib
import linecache
import os
import re
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import torch

from dask_infer.errors import PlacementError

REMEDY = 'use parallel="data", or write the model as an nn.Sequential of its layers'

_LIBRARIES = tuple(
    f"{folder}{os.sep}"
    for folder in (Path(torch.__file__).parent, Path(__file__).parents[2])
)

#: How torch says that an axis may not have any size, and which.
_FIXED = re.compile(r"size\(\)\[(\d+)\] as dynamic but your code specialized it")

#: How torch tells where traced code stood, in the text of its errors.
_TOLD = re.compile(r'File "([^"]+)", line (\d+), in \S+')


class CannotSplit(PlacementError, ValueError):
    """The model cannot be cut into layer groups."""

    #: The cause alone, for a message that names the model and the remedy itself.
    reason: str

    def __init__(self, name: str, reason: str, remedy: str = REMEDY) -> None:
        super().__init__(f'model "{name}" cannot be split: {reason}; {remedy}')
        self.reason = reason


def is_fixed(error: BaseException) -> bool:
    """Whether torch says that an axis may not have any size."""
    return _FIXED.search(str(error)) is not None


def cause_of(error: BaseException) -> str:
    """Return what went wrong in a line, and the line of the user's code that did it."""
    if fixed := _FIXED.search(str(error)):
        what = "rows" if fixed[1] == "0" else "tokens (or of another axis)"
        return f"its code takes one number of {what} alone, as loops over them do"
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    said = lines[0].strip().rstrip(".")[:200] if lines else "no message"
    text = f"{type(error).__name__}: {said}"
    place = _line(error)
    return text if place is None else f"{text} (at {place})"


def _line(error: BaseException) -> str | None:
    """Return the innermost line that is neither torch's nor ours."""
    seen: set[int] = set()
    chain: BaseException | None = error
    found = None
    while chain is not None and id(chain) not in seen:
        seen.add(id(chain))
        found = _innermost(chain.__traceback__) or found
        chain = chain.__cause__ or chain.__context__
    if found is None:
        told = [(file, int(line)) for file, line in _TOLD.findall(str(error))]
        found = next((t for t in reversed(told) if is_users_file(t[0])), None)
    if found is None:
        return None
    file, line = found
    code = linecache.getline(file, line).strip()
    return (
        f'{Path(file).name}:{line}: "{code}"' if code else f"{Path(file).name}:{line}"
    )


def _innermost(trace: TracebackType | None) -> tuple[str, int] | None:
    found = None
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if is_users_file(file):
            found = (file, trace.tb_lineno)
        trace = trace.tb_next
    return found


def is_users_file(file: str) -> bool:
    """Whether a file is neither torch's nor ours."""
    return not file.startswith((*_LIBRARIES, "<")) and not file.endswith(
        "contextlib.py"
    )


def unknown_cut(name: str, cut: str, known: Iterable[str]) -> CannotSplit:
    """Return the refusal of a module name that the model does not have."""
    names = [path for path in known if path]
    near = difflib.get_close_matches(cut, names, n=3, cutoff=0.4)
    shown = ", ".join(f'"{path}"' for path in near or names[:5])
    reason = f'it has no module "{cut}" to cut before'
    remedy = f"did you mean {shown}?" if near else f"its modules are {shown}, ..."
    return CannotSplit(name, reason, remedy)
