"""What a fitted estimator returns, told by its own attributes: it is never called.

scikit-learn's conventions (``classes_``, ``n_outputs_``, ``coef_``, ...) are followed
by its look-alikes, so nothing here asks for a class. Floating outputs are float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dask_infer.model.refusals import cannot_trace, require_method

#: Name of a column or None, dtype ("float64", "int64", "string", ...), shape of a row.
Described = tuple[str | None, str, tuple[int, ...]]


def estimator_outputs(
    estimator: Any, method: str | None = None, name: str | None = None
) -> list[Described]:
    """Return what a method of a fitted estimator returns, one entry an array.

    Parameters
    ----------
    estimator
        A fitted estimator of scikit-learn or of a library that follows it.
    method
        ``"predict"``, ``"predict_proba"``, ``"transform"``, ...; None for ``predict``.
    name
        What messages call it; its class where None.

    Raises
    ------
    MissingMethodError
        It has no such method.
    CannotTrace
        Its attributes do not tell: it is not fitted, or follows other conventions.
    """
    method = method or "predict"
    name = name or type(estimator).__name__
    require_method(estimator, name, method)
    describe = _METHODS.get(method)
    described = describe(_final(estimator, method)) if describe else None
    if described is None:
        reason = (
            f"{type(estimator).__name__} does not tell what {method} returns "
            "(has it been fitted?)"
        )
        raise cannot_trace(name, reason)
    return described


def _final(estimator: Any, method: str) -> Any:
    """Return the estimator that answers: a search's best one, a pipeline's last."""
    for attribute in ("best_estimator_", "regressor_"):
        if (inner := getattr(estimator, attribute, None)) is not None:
            return _final(inner, method)
    steps = getattr(estimator, "steps", None)
    if not isinstance(steps, list):
        return estimator
    real = [step for _, step in steps if step not in (None, "passthrough")]
    return _final(real[-1], method) if real else estimator


def _predict(estimator: Any) -> list[Described] | None:
    classes = getattr(estimator, "classes_", None)
    if classes is not None and _type(estimator) in (None, "classifier"):
        return _labels(estimator, classes)
    kind = _type(estimator)
    if kind == "outlier_detector":
        return [(None, "int64", ())]
    if kind == "clusterer" or hasattr(estimator, "labels_"):
        labels = getattr(estimator, "labels_", None)
        dtype = "int64" if labels is None else np.asarray(labels).dtype.name
        return [(None, dtype, ())]
    if hasattr(estimator, "weights_") and hasattr(estimator, "means_"):
        return [(None, "int64", ())]  # a mixture's component
    return _values(estimator) if kind == "regressor" or _is_linear(estimator) else None


def _labels(estimator: Any, classes: Any) -> list[Described] | None:
    """Return a label a row, or one for each of several outputs side by side."""
    if _is_multilabel(estimator):
        return [(None, "int64", (len(classes),))]
    if _is_several(classes):
        dtypes = [_class_dtype(each) for each in classes]
        several = dtypes[0] if len(set(dtypes)) == 1 else "object"
        return [(None, several, _row(len(classes)))]
    return [(None, _class_dtype(classes), ())]


def _is_several(classes: Any) -> bool:
    """Whether there is a list of classes for each of several outputs."""
    return isinstance(classes, list) and all(np.ndim(each) == 1 for each in classes)


def _class_dtype(classes: Any) -> str:
    """Return the dtype of the labels: texts are strings, floats float64."""
    array = np.asarray(classes)
    if array.dtype.kind == "O":
        texts = all(isinstance(label, str) for label in array.ravel())
        return "string" if texts and array.size else "object"
    return {"U": "string", "f": "float64"}.get(array.dtype.kind, array.dtype.name)


def _values(estimator: Any) -> list[Described] | None:
    width = _width(estimator)
    return None if width is None else [(None, "float64", _row(width))]


def _width(estimator: Any) -> int | None:
    """Return how many values a regressor gives a row; None where it is not fitted."""
    if (outputs := getattr(estimator, "n_outputs_", None)) is not None:
        return int(outputs)
    members = getattr(estimator, "estimators_", None)
    if isinstance(members, list) and members:
        each = type(estimator).__name__ in _PER_OUTPUT
        return len(members) if each else _width(members[0])
    if (inner := getattr(estimator, "estimator_", None)) is not None:
        return _width(inner)
    for attribute, axis in _TARGETS:
        array: Any = getattr(estimator, attribute, None)
        if np.ndim(array) == 2 and not hasattr(estimator, "support_"):
            return int(np.shape(array)[axis])
    return 1 if _is_fitted(estimator) else None


#: Meta-estimators that hold one estimator for each output.
_PER_OUTPUT = ("MultiOutputRegressor", "RegressorChain")

#: Attributes that are two-dimensional where there are several outputs, and their axis.
_TARGETS = (
    ("coef_", 0),
    ("dual_coef_", 1),
    ("_y", 1),
    ("y_train_", 1),
    ("constant_", 1),
)


def _is_fitted(estimator: Any) -> bool:
    """Whether fitting left an attribute: by convention its name ends in "_"."""
    if (check := getattr(estimator, "__sklearn_is_fitted__", None)) is not None:
        return bool(check())
    try:
        names = [*vars(estimator), "n_features_in_", "feature_importances_"]
    except TypeError:
        return True
    ends = (n for n in names if n.endswith("_") and not n.startswith("__"))
    return any(_has(estimator, name) for name in ends)


def _has(estimator: Any, name: str) -> bool:
    """Whether an attribute is there; look-alikes raise errors of their own."""
    try:
        return getattr(estimator, name, None) is not None
    except Exception:
        return False


def _probabilities(estimator: Any) -> list[Described] | None:
    classes = getattr(estimator, "classes_", None)
    if classes is None:
        components = getattr(estimator, "weights_", None)  # of a mixture
        return None if components is None else [(None, "float64", np.shape(components))]
    if _is_several(classes):
        return [(None, "float64", (len(each),)) for each in classes]
    return [(None, "float64", (len(classes),))]


def _decision(estimator: Any) -> list[Described] | None:
    classes = getattr(estimator, "classes_", None)
    if classes is None:
        return _scores(estimator)
    if _is_several(classes):
        return None
    count = len(classes)
    if count == 2 and not _is_multilabel(estimator):
        return [(None, "float64", ())]
    if getattr(estimator, "decision_function_shape", None) == "ovo":
        count = count * (count - 1) // 2
    return [(None, "float64", (count,))]


def _scores(estimator: Any) -> list[Described] | None:
    return [(None, "float64", ())] if _is_fitted(estimator) else None


def _transform(estimator: Any) -> list[Described] | None:
    names = _feature_names(estimator)
    if names is not None and _gives_frames(estimator):
        return [(name, "float64", ()) for name in names]
    width = len(names) if names is not None else _components(estimator)
    if width is None:
        return None
    return [(None, _asked_dtype(estimator), (width,))]


def _asked_dtype(estimator: Any) -> str:
    """Return the dtype that an encoder was asked for; floats are float64."""
    try:
        dtype = np.dtype(getattr(estimator, "dtype", None) or "float64")
    except TypeError:
        return "float64"
    return dtype.name if dtype.kind in "iub" else "float64"


def _feature_names(estimator: Any) -> list[str] | None:
    """Return the names of the columns that ``transform`` gives, where it knows them."""
    try:
        return [str(name) for name in estimator.get_feature_names_out()]
    except Exception:  # not fitted, or a step that knows none
        return None


def _components(estimator: Any) -> int | None:
    for attribute in ("_n_features_out", "n_components_", "n_components"):
        count = getattr(estimator, attribute, None)
        if isinstance(count, (int, np.integer)) and not isinstance(count, bool):
            return int(count)
    return None


def _gives_frames(estimator: Any) -> bool:
    configured = getattr(estimator, "_sklearn_output_config", {})
    return configured.get("transform") in ("pandas", "polars")


_METHODS: dict[str, Callable[[Any], list[Described] | None]] = {
    "predict": _predict,
    "predict_proba": _probabilities,
    "predict_log_proba": _probabilities,
    "decision_function": _decision,
    "score_samples": _scores,
    "transform": _transform,
}


def _type(estimator: Any) -> str | None:
    """Return "classifier", "regressor", ...; None where the estimator does not say."""
    kind = getattr(estimator, "_estimator_type", None)
    if kind is None and hasattr(estimator, "__sklearn_tags__"):
        try:
            kind = estimator.__sklearn_tags__().estimator_type
        except Exception:  # tags of look-alikes written for another version
            return None
    return None if kind is None else str(kind)


def _is_multilabel(estimator: Any) -> bool:
    """Whether each row has any number of labels: a column of 0 and 1 for each."""
    binarizer = getattr(estimator, "_label_binarizer", None)
    kind = str(getattr(binarizer, "y_type_", ""))
    return kind.startswith("multilabel") or bool(
        getattr(estimator, "multilabel_", False)
    )


def _is_linear(estimator: Any) -> bool:
    return hasattr(estimator, "coef_") and not hasattr(estimator, "classes_")


def _row(width: int) -> tuple[int, ...]:
    return () if width == 1 else (width,)
