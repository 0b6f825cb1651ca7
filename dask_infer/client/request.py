"""The arguments of a `predict` call, each checked for itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
from dask.utils import parse_timedelta

from dask_infer.device.device_names import check_device_name
from dask_infer.spec import Layout

ON_ERROR = ("raise", "null", "quarantine")
DTYPES = ("float16", "bfloat16", "float32", "float64", "int8")


@dataclass(frozen=True)
class Request:
    """The arguments of one `predict` call, checked and in one form.

    `DataFrameInfer.predict` explains them. Afterwards `device` and `dtype` are names,
    `parallel` is a `Layout`, `resources` are pairs in a fixed order, and `timeout` is
    in seconds.
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
    resources: Any = None
    on_error: Literal["raise", "null", "quarantine"] = "raise"
    timeout: Any = None
    row_wise: bool = True
    meta: Any = None
    #: Whether the layout is chosen once workers are known; `parallel` is the default.
    auto: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "auto", _is_auto(self.parallel))
        parsed = {
            "device": check_device_name(_named(self.device)),
            "dtype": _named(self.dtype),
            "parallel": _layout(self.parallel),
            "resources": _resources(self.resources),
            "timeout": None if self.timeout is None else _seconds(self.timeout),
        }
        for name, value in parsed.items():
            object.__setattr__(self, name, value)
        self._check()
        if self.parallel.sweep and self.resources:
            raise ValueError(
                f"resources={dict(self.resources)!r}: a sweep runs where the rows are "
                "and holds no resource; leave out resources= or the sweep"
            )

    def _check(self) -> None:
        _check_count("batch_size", self.batch_size, "auto")
        _check_count("batch_tokens", self.batch_tokens, "auto", None)
        for name in ("preprocess", "postprocess"):
            function = getattr(self, name)
            if not (function is None or callable(function)):
                raise ValueError(f"{name}={function!r}: pass a function")
        if not isinstance(self.method, str | None):
            raise ValueError(f"method={self.method!r}: pass the name of a method")
        for name in ("call_kwargs", "shapes"):
            if not isinstance(value := getattr(self, name), Mapping | None):
                raise ValueError(f"{name}={value!r}: pass a dict")
        for name, choices in (("dtype", (None, *DTYPES)), ("on_error", ON_ERROR)):
            value = getattr(self, name)
            if value not in choices:
                shown = ", ".join(repr(c) for c in choices if c is not None)
                raise ValueError(f"{name}={value!r}: pass one of {shown}")
        if not isinstance(self.row_wise, bool):
            raise ValueError(f"row_wise={self.row_wise!r}: pass True or False")


def _named(value: Any) -> Any:
    """Return the name of a dtype or device that was passed as torch's or NumPy's."""
    if isinstance(value, type) and issubclass(value, np.generic):
        value = np.dtype(value)
    if isinstance(value, np.dtype):
        return value.name
    if type(value).__module__ == "torch":  # which need not be imported here
        return str(value).removeprefix("torch.")
    return value


def _is_auto(parallel: Any) -> bool:
    return isinstance(parallel, str) and parallel == "auto"


def _layout(parallel: Any) -> Layout:
    """Return the layout that ``parallel=`` asks for, or raise `ValueError`."""
    if isinstance(parallel, Layout):
        layout = parallel
    elif parallel == "data" or _is_auto(parallel):
        layout = Layout()
    elif parallel == "pipeline":
        layout = Layout(stages="auto")
    elif parallel == "tensor":
        layout = Layout(shards="auto")
    elif parallel == "sweep":
        layout = Layout(sweep=True)
    else:
        raise ValueError(
            f'parallel={parallel!r}: pass "data", "pipeline", "tensor", "sweep", '
            '"auto" or a dask_infer.Layout'
        )
    return layout


def _resources(resources: Any) -> tuple[tuple[str, float], ...]:
    """Return ``resources=`` in a fixed order, or raise `ValueError`."""
    if resources is None:
        return ()
    if not isinstance(resources, Mapping) or not resources:
        raise ValueError(
            f"resources={resources!r}: pass what one replica or stage holds, such as "
            '{"GPU": 1}'
        )
    for name, amount in resources.items():
        if not isinstance(amount, Real) or isinstance(amount, bool) or amount <= 0:
            raise ValueError(
                f"resources={{{name!r}: {amount!r}}}: pass a number above 0"
            )
    return tuple(sorted((str(name), float(v)) for name, v in resources.items()))


def _check_count(name: str, value: Any, *words: Any) -> None:
    if any(value is word or value == word for word in words):
        return
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        accepted = " or ".join(["a positive whole number", *map(repr, words)])
        raise ValueError(f"{name}={value!r}: pass {accepted}")


def _seconds(timeout: Any) -> float:
    """Return a time span in seconds, or raise `ValueError`."""
    try:
        seconds = float(parse_timedelta(timeout))
    except (ValueError, TypeError, KeyError):
        seconds = 0.0
    if seconds <= 0:
        raise ValueError(f'timeout={timeout!r}: pass seconds, or a text like "30s"')
    return seconds
