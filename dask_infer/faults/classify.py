"""Whether a row may cause an error, in which step it was raised, and its text."""

from __future__ import annotations

import traceback
from typing import Literal, NoReturn, TypeAlias

import torch

from dask_infer.errors import InferError, InputError, OutputError

#: input: columns to tensors. output: what came back, to columns.
Step: TypeAlias = Literal["input", "preprocess", "forward", "postprocess", "output"]

#: Characters of a message that are kept of each failed row.
LONGEST = 1000


class StepFailed(Exception):
    """An error together with the step in which it was raised; the error is chained."""

    def __init__(self, step: Step, error: Exception) -> None:
        super().__init__(step, error)
        self.step = step
        self.error = error

    def __str__(self) -> str:
        return f"{self.step}: {type(self.error).__name__}: {self.error}"


def is_of_no_row(error: BaseException) -> bool:
    """Whether `error` would meet any other row as well.

    A missing library, a lost device, a model that cannot be loaded or placed, an output
    of another structure than promised. Anything else may be caused by a row, until
    other rows fail, too: see `ErrorBudget`.
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


def raise_again(error: BaseException) -> NoReturn:
    """Raise an error while another that holds it is handled, `StepFailed` say.

    Python would make that one its context, and the two a ring.
    """
    context = error.__context__
    try:
        raise error
    finally:
        error.__context__ = context
