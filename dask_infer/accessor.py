"""`.infer` on Dask and pandas collections."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar, cast

import numpy as np
import pandas as pd
from dask.dataframe.extensions import (
    register_dataframe_accessor,
    register_series_accessor,
)

from dask_infer._dask import DataFrame, Series, new_collection
from dask_infer.batch.inputs.frame_columns import several_levels
from dask_infer.batch.tensor.lists import is_list, to_dense
from dask_infer.client.layout_plan import Plan
from dask_infer.client.request import Request
from dask_infer.graph.expr import Predict, PredictBatches
from dask_infer.spec import Layout
from dask_infer.watching.prediction_summary import PredictionSummary

_F = TypeVar("_F", bound=Callable[..., Any])


def _with_parameters_of(
    other: Callable[..., Any], **defaults: Any
) -> Callable[[_F], _F]:
    """Give a method the parameters of another, and what its docstring says of them."""

    def decorate(method: _F) -> _F:
        @functools.wraps(method)
        def checked(*args: Any, **kwargs: Any) -> Any:
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{method.__name__}() {error}") from None
            return method(*args, **kwargs)

        parameters = [
            each.replace(default=defaults.get(each.name, each.default))
            for each in inspect.signature(other).parameters.values()
        ]
        signature = inspect.signature(method).replace(parameters=parameters)
        checked.__signature__ = signature  # type: ignore[attr-defined]
        if other.__doc__ and method.__doc__:  # neither under ``python -OO``
            source = inspect.cleandoc(other.__doc__)
            start, end = source.index("Parameters\n"), source.index("Returns\n")
            head, returns = inspect.cleandoc(method.__doc__).split("Returns\n")
            checked.__doc__ = f"{head}{source[start:end]}Returns\n{returns}"
        return cast(_F, checked)

    return decorate


class _Infer:
    """Shows what a Dask collection predicts."""

    def __init__(self, collection: Any) -> None:
        self._collection = collection

    def __repr__(self) -> str:
        return repr(PredictionSummary(self._collection))

    def _repr_html_(self) -> str | None:
        return PredictionSummary(self._collection)._repr_html_()


@register_dataframe_accessor("infer")
class DataFrameInfer(_Infer):
    """Inference over the rows of a Dask dataframe."""

    def predict(
        self,
        model: Any,
        *,
        columns: Any = None,
        output: str | Sequence[str] | Mapping[str, str] | None = None,
        keep: bool | Sequence[Any] = True,
        batch_size: int | Literal["auto"] = "auto",
        batch_tokens: int | Literal["auto"] | None = "auto",
        preprocess: Callable[[pd.DataFrame], Any] | None = None,
        tokenizer: Any = None,
        postprocess: Callable[..., Any] | None = None,
        method: str | None = None,
        call_kwargs: Mapping[str, Any] | None = None,
        shapes: Mapping[str, Sequence[int]] | None = None,
        dtype: Any = None,
        device: Any = "auto",
        parallel: str | Layout = "data",
        resources: Mapping[str, float] | None = None,
        on_error: Literal["raise", "null", "quarantine"] = "raise",
        timeout: float | str | None = None,
        row_wise: bool = True,
        meta: Any = None,
    ) -> DataFrame:
        """Run a model over every row; nothing runs until the result is computed.

        The call itself fixes the model and finds the columns of the result. It hashes
        the model's content, propagates shapes through its code without weights or data
        (not with `meta`), and writes a model that is an object in memory to the content
        store on this machine's disk. With stages it also splits the model. Later
        changes to the model are not seen. The call takes about as long as reading and
        writing the weights once, and a second one with an equal model milliseconds. It
        runs neither the model on data nor `preprocess` or `postprocess`.

        Parameters
        ----------
        model
            A torch module, a path (``*.pt2``, ``*.onnx``, ``*.tflite``, a Hugging
            Face or sentence-transformers directory), a fitted estimator, a class, a
            callable, a `ModelSource`, or several models: `Towers`, `Ensemble`.
        columns
            What the model reads: one column ``"x"`` (scalars ``(n,)``, lists
            ``(n, *shape)``); a list ``["a", "b"]`` side by side as one ``(n, 2)``
            tensor; a tuple for positional arguments; a dict for keyword arguments.
            None takes all columns side by side.
        output
            Name of the output column, names of several, or ``{field: name}``.
        keep
            Input columns carried into the result: all, none, or a list.
        batch_size
            Most rows of one forward; ``"auto"`` grows it while rows/s improves.
        batch_tokens
            Most padded tokens of one forward over texts; None for no limit.
        preprocess
            ``f(frame) -> DataFrame | tensor | tuple | dict`` on the rows of a batch.
        tokenizer
            For text: a Hugging Face tokenizer, its directory, or a callable
            ``list[str] -> dict``. A model's directory brings its own.
        postprocess
            ``f(output, frame)`` or ``f(output, frame, inputs)``, on the device's
            tensors, before they are copied back.
        method
            Call this method instead of the model itself, such as ``"predict_proba"``.
        call_kwargs
            Extra keyword arguments of every call.
        shapes
            ``{column: row shape}`` for flat list columns.
        dtype
            Floating dtype the model runs in: "float32", "bfloat16", "float16",
            "float64", or such a dtype of torch or NumPy. "int8" rounds its linear
            layers to 8 bits (CPU only) and runs all else in float32. By default it
            stays as loaded.
        device
            ``"auto"`` (the accelerator where there is one), "cpu", "cuda", "mps", or a
            `torch.device`.
        parallel
            How the model is spread over workers. ``"data"``: each holds all of it.
            ``"pipeline"``: layer groups on as few workers as can hold the model, which
            needs a distributed client. ``"tensor"``: the weights of each layer on as
            few workers as can hold them, two at least, which needs one as well.
            ``"sweep"``: each process runs the layer groups one after the other, for a
            model larger than all memory there is. ``"auto"``: chosen as the result is
            computed, from the model's size, the workers' memory and measured speed;
            `explain` shows what it compares. A
            `Layout` says it in detail.
        resources
            Dask resources that one replica, or one stage, holds: ``{"GPU": 1}``. Only
            workers that have them hold the model; the others send it their rows.
        on_error
            ``"raise"``: a row that fails fails its partition. ``"null"``: rows that
            fail are missing in the outputs, which are then nullable; all others keep
            their prediction. ``"quarantine"``: also the string column
            ``infer_error`` with the step and message of each. An error that is not the
            fault of single rows raises all the same.
        timeout
            Seconds, or a text like ``"30s"``, that a load or one forward may take.
            After that its thread is abandoned; the next batch gets a fresh replica.
        row_wise
            False where rows of a batch influence each other: batches are then
            consecutive rows, and neither filters nor ``head`` move below the model.
        meta
            The output columns where they cannot be inferred: a dtype, ``{name:
            dtype}``, ``(name, dtype)`` or a pandas object.

        Returns
        -------
        dask.dataframe.DataFrame
            The kept columns and the outputs: same divisions, index and row order.
            Vector outputs are `TensorDtype` columns.

        Raises
        ------
        InputError
            If a column is missing or cannot become what the model reads.
        OutputError
            If the output columns cannot be inferred and `meta` is not given.
        PlacementError
            If `parallel` asks for stages and the model cannot be split into them; the
            message names the reason and the line of code.
        ModelLoadError
            If the model is missing, corrupt, or may run code and is not trusted.
        ValueError
            If an argument is not one of its choices, or an output's name is taken.
        """
        variables = {k: v for k, v in locals().items() if k != "self"}
        return _predict(self._collection, Request(**variables))

    @_with_parameters_of(predict)
    def explain(self, model: Any, **arguments: Any) -> Plan | Awaitable[Plan]:
        """Compare the layouts of a `predict` call, and run nothing.

        `parallel` is not read, as all layouts are compared. The model is neither loaded
        nor run: what jobs measured on the workers' hosts is known again, the rest is
        projected from sizes, or assumed.

        Returns
        -------
        Plan
            A line for each layout with its projected memory, load and run time, or
            the number that refuses it; ``>`` at the one that ``parallel="auto"`` would
            take now. Of `Towers` or an `Ensemble` a plan of each model, in `towers`.
            An awaitable of it where the current client is asynchronous.

        Raises
        ------
        InferError, ValueError
            As of `predict`.
        PlacementError
            If the cluster has no workers.
        """
        return _explain(self._collection, Request(model, **arguments))


@register_series_accessor("infer")
class SeriesInfer(_Infer):
    """Inference over one column of a Dask dataframe."""

    @_with_parameters_of(DataFrameInfer.predict, keep=False)
    def predict(self, model: Any, **arguments: Any) -> DataFrame | Series:
        """Run a model over the values of this column.

        The same call as `DataFrameInfer.predict` on a dataframe of this one column,
        with two other defaults: `columns` is this column, and `keep` is False.

        Returns
        -------
        dask.dataframe.Series or dask.dataframe.DataFrame
            A series named as the output column where there is one output and the
            column is not kept; else a dataframe.
        """
        result = _predict(*self._call(model, arguments))
        return result[result.columns[0]] if len(result.columns) == 1 else result

    @_with_parameters_of(predict)
    def explain(self, model: Any, **arguments: Any) -> Plan | Awaitable[Plan]:
        """Compare the layouts of a `predict` call, and run nothing.

        Returns
        -------
        Plan
            As of `DataFrameInfer.explain`.
        """
        return _explain(*self._call(model, arguments))

    def _call(self, model: Any, arguments: dict[str, Any]) -> tuple[DataFrame, Request]:
        """Return the column as a dataframe, and the request of a call on it."""
        name = "value" if self._collection.name is None else self._collection.name
        if isinstance(name, tuple):
            raise several_levels(len(name))
        if arguments.get("columns") is None:
            arguments["columns"] = name
        request = Request(model, **{"keep": False, **arguments})
        return self._collection.to_frame(name=name), request

    def to_numpy(self, dtype: Any = None) -> np.ndarray:
        """Compute this column as one ``(n, *shape)`` array."""
        return _to_numpy(self._collection.compute(), dtype)


@pd.api.extensions.register_series_accessor("infer")
class PandasSeriesInfer:
    """What a prediction's column offers once it is computed."""

    def __init__(self, series: pd.Series) -> None:
        self._series = series

    def to_numpy(self, dtype: Any = None) -> np.ndarray:
        """Return the column as one ``(n, *shape)`` array, without a copy if possible.

        Parameters
        ----------
        dtype
            NumPy dtype of the result; by default the column's own.

        Raises
        ------
        InputError
            If rows have different shapes.
        """
        return _to_numpy(self._series, dtype)


def _to_numpy(series: pd.Series, dtype: Any) -> np.ndarray:
    listed = is_list(series.dtype) or _holds_lists(series)
    values = to_dense(series) if listed else series.to_numpy()
    return values if dtype is None else values.astype(dtype, copy=False)


def _holds_lists(series: pd.Series) -> bool:
    """Whether an object column's first value is a list, as read back from parquet."""
    if series.dtype != object:
        return False
    is_scalar = pd.api.types.is_scalar
    present = (v for v in series.array if not is_scalar(v) or pd.notna(v))
    return isinstance(next(present, None), list | tuple | np.ndarray)


def _predict(frame: DataFrame, request: Request) -> DataFrame:
    from dask_infer.client.job_builder import build_job  # imports torch

    job, emit = build_job(request, frame.expr)
    node = Predict if request.row_wise else PredictBatches
    predicted: DataFrame = new_collection(node(frame.expr, job, emit))
    return predicted


def _explain(frame: DataFrame, request: Request) -> Plan | Awaitable[Plan]:
    from dask_infer.client.explain import explain  # imports torch

    return explain(replace(request, parallel="auto"), frame.expr)
