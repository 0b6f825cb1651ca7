"""Whose error it is: a row's, or nobody's, so that no row can be left out for it."""

from __future__ import annotations

import traceback

import torch

from dask_infer.errors import InferError, InputError, OutputError
from dask_infer.faults.step import Step

#: Characters of a message that are kept of each failed row.
LONGEST = 1000


def is_nobodys(error: BaseException) -> bool:
    """Whether `error` would meet any other row as well.

    A missing library, a lost device, a model that cannot be loaded or placed, an output
    of another structure than promised. What a row may cause (anything else) is only
    known to be nobody's once other rows fail, too: see `ErrorBudget`.
    """
    if isinstance(error, InferError):
        rows_own = isinstance(error, OutputError) and error.of_a_row
        return not (rows_own or isinstance(error, InputError))
    return isinstance(error, ImportError) or is_device_lost(error)


def is_device_lost(error: BaseException) -> bool:
    """Whether an accelerator failed: after that every call on it does.

    Also where a row was the reason, an index out of range say: CUDA's context does
    not survive a failed assertion on the device.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return False
    lost = isinstance(error, torch.AcceleratorError)
    return lost or (
        isinstance(error, RuntimeError)
        and str(error).startswith(("CUDA error", "CUDA driver error", "HIP error"))
    )


def forget_frames(error: BaseException) -> None:
    """Let go of what the frames of an error, and of its causes, hold: tensors."""
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        link = chain.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            traceback.clear_frames(link.__traceback__)
            chain += [link.__cause__, link.__context__]


def describe(step: Step, error: BaseException) -> str:
    """Return ``"forward: ValueError: ..."``, as ``infer_error`` holds it."""
    text = f"{step}: {type(error).__name__}: {error}"
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
