"""Why a model cannot be split, in the user's words, with the line at fault."""

from __future__ import annotations

import linecache
import os
import re
import traceback
from pathlib import Path

import torch

from dask_infer.errors import PlacementError

AS_MODULE = "leave out parallel=, or pass the torch module itself or its directory"
REMEDY = 'use parallel="data", or write the model as an nn.Sequential of its layers'

_LIBRARIES = tuple(
    f"{folder}{os.sep}"
    for folder in (Path(torch.__file__).parent, Path(__file__).parents[1])
)

#: How torch says that an axis may not have any size, and which.
_FIXED = re.compile(r"size\(\)\[(\d+)\] as dynamic but your code specialized it")

#: How torch says where traced code stood, in the text of its errors.
_PLACE = re.compile(r'File "([^"]+)", line (\d+), in \S+')


class CannotSplit(PlacementError, ValueError):
    """The model cannot be cut into layer groups."""

    #: The cause alone, for a message that names the model and the remedy itself.
    reason: str

    def __init__(self, name: str, reason: str, remedy: str = REMEDY) -> None:
        super().__init__(f'model "{name}" cannot be split: {reason}; {remedy}')
        self.reason = reason


class NotExactError(Exception):
    """Code of which stages would return something else; says so in the user's words."""


def is_fixed(error: BaseException) -> bool:
    """Whether torch says that an axis may not have any size."""
    return _FIXED.search(str(error)) is not None


def cause_of(error: BaseException) -> str:
    """Return what went wrong in a line, and the line of the user's code that did it."""
    if isinstance(error, NotExactError):
        return str(error)
    if fixed := _FIXED.search(str(error)):
        only = "its code takes one number of"
        if fixed[1] == "0":
            return f"{only} rows alone, as loops and len(x) do (x.shape[0] does not)"
        return f"{only} tokens (or of another axis) alone, as loops over them do"
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    said = lines[0].strip().rstrip(".")[:200] if lines else "no message"
    place = _place(error)
    at = "" if place is None else f" (at {line_of(*place)})"
    return f"{type(error).__name__}: {said}{at}"


def _place(error: BaseException) -> tuple[str, int] | None:
    """Return the file and the innermost line that is neither torch's nor ours."""
    seen: set[int] = set()
    chain: BaseException | None = error
    found = None
    while chain is not None and id(chain) not in seen:
        seen.add(id(chain))
        walked = traceback.walk_tb(chain.__traceback__)
        found = _last([(frame.f_code.co_filename, n) for frame, n in walked]) or found
        chain = chain.__cause__ or chain.__context__
    said = [(file, int(line)) for file, line in _PLACE.findall(str(error))]
    return found or _last(said)


def _last(places: list[tuple[str, int]]) -> tuple[str, int] | None:
    return next((one for one in reversed(places) if is_users_file(one[0])), None)


def line_of(file: str, line: int) -> str:
    """Return a line of code as people look for it."""
    code = linecache.getline(file, line).strip()
    place = f"{Path(file).name}:{line}"
    return f'{place}: "{code}"' if code else place


def is_users_file(file: str) -> bool:
    """Whether a file is neither torch's nor ours."""
    return not file.startswith((*_LIBRARIES, "<")) and not file.endswith(
        "contextlib.py"
    )
