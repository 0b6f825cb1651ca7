"""The arguments of a `predict` call, each checked for itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
from dask.utils import parse_timedelta

from dask_infer.device.device_names import check_device_name
from dask_infer.spec import Layout

ON_ERROR = ("raise", "null", "quarantine")
LAYOUTS = {
    "data": Layout(),
    "pipeline": Layout(stages="auto"),
    "tensor": Layout(shards="auto"),
    "sweep": Layout(sweep=True),
    "auto": Layout(),
}
DTYPES = ("float16", "bfloat16", "float32", "float64", "int8")


@dataclass(frozen=True)
class Request:
    """The arguments of one `predict` call, checked and in one form.

    `DataFrameInfer.predict` explains them. Afterwards `device` and `dtype` are names,
    and `timeout` is in seconds.
    """

    model: Any
    columns: Any = None
    output: Any = None
    keep: Any = True
    batch_size: Any = "auto"
    batch_tokens: Any = "auto"
    preprocess: Callable[..., Any] | None = None
    tokenizer: Any = None
    postprocess: Callable[..., Any] | None = None
    method: str | None = None
    call_kwargs: Mapping[str, Any] | None = None
    shapes: Mapping[str, Sequence[int]] | None = None
    dtype: Any = None
    device: Any = "auto"
    parallel: Any = "data"
    resources: Mapping[str, float] | None = None
    on_error: Literal["raise", "null", "quarantine"] = "raise"
    timeout: Any = None
    row_wise: bool = True
    meta: Any = None

    def __post_init__(self) -> None:
        parsed = {
            "device": check_device_name(_named(self.device)),
            "dtype": _named(self.dtype),
            "timeout": None if self.timeout is None else _seconds(self.timeout),
        }
        for name, value in parsed.items():
            object.__setattr__(self, name, value)
        self._check_layout()
        check_count("batch_size", self.batch_size, "auto")
        check_count("batch_tokens", self.batch_tokens, "auto", None)
        _check_function("preprocess", self.preprocess, ("frame",))
        _check_function("postprocess", self.postprocess, ("output", "frame"), "inputs")
        if not isinstance(self.method, str | None):
            raise ValueError(f"method={self.method!r}: pass the name of a method")
        for name in ("call_kwargs", "shapes"):
            if not isinstance(value := getattr(self, name), Mapping | None):
                raise ValueError(f"{name}={value!r}: pass a dict")
        for key in self.call_kwargs or {}:
            if not isinstance(key, str):
                raise ValueError(
                    f"call_kwargs={{{key!r}: ...}}: keys are names of the model's "
                    "arguments"
                )
        for name, choices in (("dtype", (None, *DTYPES)), ("on_error", ON_ERROR)):
            value = getattr(self, name)
            if value not in choices:
                shown = ", ".join(repr(c) for c in choices if c is not None)
                raise ValueError(f"{name}={value!r}: pass one of {shown}")
        if not isinstance(self.row_wise, bool):
            raise ValueError(f"row_wise={self.row_wise!r}: pass True or False")

    def _check_layout(self) -> None:
        # What is no layout may have no hash.
        if not (isinstance(self.parallel, Layout) or self.parallel in [*LAYOUTS]):
            raise ValueError(
                f'parallel={self.parallel!r}: pass "data", "pipeline", "tensor", '
                '"sweep", "auto" or a dask_infer.Layout (that of a plan is plan.layout)'
            )
        if self.resources is None:
            return
        if not isinstance(self.resources, Mapping) or not self.resources:
            raise ValueError(
                f"resources={self.resources!r}: pass what one replica or stage holds, "
                'such as {"GPU": 1}'
            )
        for name, amount in self.resources.items():
            if not isinstance(name, str):
                raise ValueError(
                    f"resources={{{name!r}: ...}}: keys are names of resources, such "
                    'as "GPU"'
                )
            if (
                not isinstance(amount, Real)
                or isinstance(amount, bool)
                or not amount > 0
            ):
                raise ValueError(
                    f"resources={{{name!r}: {amount!r}}}: pass a number above 0"
                )
        if self.layout.sweep:
            raise ValueError(
                f"resources={dict(self.resources)!r}: a sweep runs where the rows are "
                "and holds no resource; leave out resources= or the sweep"
            )

    @property
    def auto(self) -> bool:
        """Whether the layout is chosen once workers are known."""
        return self.parallel == "auto"  # type: ignore[no-any-return]

    @property
    def layout(self) -> Layout:
        """The layout that is asked for; the default where it is yet to be chosen."""
        layout: Layout = LAYOUTS.get(self.parallel, self.parallel)
        return layout


def _named(value: Any) -> Any:
    """Return the name of a dtype or device that was passed as torch's or NumPy's."""
    if isinstance(value, type) and issubclass(value, np.generic):
        value = np.dtype(value)
    if isinstance(value, np.dtype):
        return value.name
    if type(value).__module__ == "torch":  # which need not be imported here
        return str(value).removeprefix("torch.")
    return value


def _check_function(
    name: str, function: Any, arguments: tuple[str, ...], *further: str
) -> None:
    """Refuse what cannot be called with `arguments`, nor with `further` ones."""
    if function is None:
        return
    if not callable(function):
        raise ValueError(f"{name}={function!r}: pass a function")
    try:
        # A module is called with anything, its forward is not.
        signature = inspect.signature(getattr(function, "forward", function))
    except (TypeError, ValueError):
        return
    calls = [arguments, (*arguments, *further)]
    if not any(_takes(signature, call) for call in calls):
        shown = " or ".join(f"({', '.join(call)})" for call in dict.fromkeys(calls))
        raise ValueError(
            f"{name}={function!r} is called with {shown}, and takes {signature}; wrap "
            f"it: lambda {', '.join(arguments)}: ..."
        )


def _takes(signature: inspect.Signature, arguments: tuple[str, ...]) -> bool:
    try:
        signature.bind(*arguments)
    except TypeError:
        return False
    return True


def check_count(name: str, value: Any, *words: Any) -> None:
    """Refuse what is neither a positive whole number nor one of `words`."""
    if any(value is word or value == word for word in words):
        return
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        accepted = " or ".join(["a positive whole number", *map(repr, words)])
        raise ValueError(f"{name}={value!r}: pass {accepted}")


def _seconds(timeout: Any) -> float:
    """Return a time span in seconds, or raise `ValueError`."""
    try:
        seconds = float(parse_timedelta(timeout))
    except (AttributeError, ValueError, TypeError, KeyError):
        seconds = 0.0
    if seconds <= 0:
        raise ValueError(f'timeout={timeout!r}: pass seconds, or a text like "30s"')
    return seconds
