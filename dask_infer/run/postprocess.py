"""The user's `postprocess`, called with what it asks for.

A local replica does this on the device, so that less is copied back. For a group the
partition's thread does it on the CPU, since `postprocess` needs the frame.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from dask_infer.batch.inputs.batch import Batch
from dask_infer.batch.outputs.pick import pick
from dask_infer.device.stream import Fields
from dask_infer.faults.classify import Step, StepFailed
from dask_infer.spec import Job, UserCode


class Postprocess:
    """Makes the fields that become columns of each output of a job."""

    def __init__(self, job: Job, code: UserCode) -> None:
        self._function = code.postprocess
        self._takes_inputs = takes_inputs(code.postprocess)
        self._outputs = job.outputs

    def __call__(
        self, output: Any, batch: Batch, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Fields:
        """Return what the columns are made of, by name.

        The model was called with `args` and `kwargs`, on the output's device.
        """
        step: Step = "postprocess"
        try:
            if self._function is not None:
                inputs = (as_called(args, kwargs),) if self._takes_inputs else ()
                # An inference tensor: only here may it be changed in place.
                with torch.inference_mode():
                    output = self._function(output, batch.frame, *inputs)
            step = "output"
            return pick(output, self._outputs)
        except Exception as error:
            raise StepFailed(step, error) from error


def takes_inputs(postprocess: Callable[..., Any] | None) -> bool:
    """Whether `postprocess` wants the model's inputs as its third argument.

    A third parameter with a default is the user's own, unless it is called "inputs".
    """
    if postprocess is None:
        return False
    try:
        # A module is called with anything, its forward is not.
        signature = inspect.signature(getattr(postprocess, "forward", postprocess))
        signature.bind(None, None, None)
    except (TypeError, ValueError):
        return False
    third = list(signature.parameters.values())[2:3]
    own = bool(third) and third[0].default is not inspect.Parameter.empty
    return not own or third[0].name == "inputs"


def as_called(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what the model was called with: one tensor, a tuple, or a dict."""
    if kwargs:
        return kwargs
    return args[0] if len(args) == 1 else args
