"""Swallowed errors: what torch cannot follow, and the model's code caught.

Torch raises where code asks for a value (`if x.sum() > 0`). Within a `try` of the model
the export goes on, along a way that the model itself does not take.
"""

from __future__ import annotations

from typing import Any

from torch._guards import detect_fake_mode

from dask_infer.model.split.refusals import is_users_file


class Swallowed:
    """Notes errors of an export as torch makes them."""

    def __init__(self) -> None:
        self._made: list[BaseException] = []

    def watch(self, given: Any) -> None:
        """Watch the export that calls the model with these arguments."""
        shapes = getattr(detect_fake_mode(given), "shape_env", None)
        # Its own environment, made within torch (2.13), so there is none to pass.
        name = "_make_data_dependent_error"
        if shapes is None or name in vars(shapes) or not hasattr(shapes, name):
            return
        make = getattr(shapes, name)

        def noted(*args: Any, **kwargs: Any) -> Any:
            error = make(*args, **kwargs)
            self._made.append(error)
            return error

        setattr(shapes, name, noted)

    def check(self) -> None:
        """Raise the first error that got as far as the model's code, and no further.

        Torch catches some itself, where it does as well without the answer.
        """
        made, self._made = self._made, []
        for error in made:
            trace = error.__traceback__  # starts in the frame that caught it
            if trace and is_users_file(trace.tb_frame.f_code.co_filename):
                raise error
