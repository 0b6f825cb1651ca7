"""The step of a batch's way in which something failed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal, NoReturn, TypeAlias

#: input: columns to tensors. output: what came back, to columns.
Step: TypeAlias = Literal["input", "preprocess", "forward", "postprocess", "output"]


class StepFailed(Exception):
    """An error together with the step in which it was raised; the error is chained."""

    def __init__(self, step: Step, error: Exception) -> None:
        super().__init__(step, error)
        self.step = step
        self.error = error

    def __str__(self) -> str:
        return f"{self.step}: {type(self.error).__name__}: {self.error}"


@contextlib.contextmanager
def step(name: Step) -> Iterator[None]:
    """Say of what fails inside that it failed in this step; inner steps win."""
    try:
        yield
    except StepFailed:
        raise
    except Exception as error:
        raise StepFailed(name, error) from error


def raise_again(error: BaseException) -> NoReturn:
    """Raise an error while another that holds it is handled, `StepFailed` say.

    Python would make that one its context, and the two a ring.
    """
    context = error.__context__
    try:
        raise error
    finally:
        error.__context__ = context
