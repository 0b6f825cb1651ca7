"""What a fitted estimator returns, by its own attributes: it is never called.

scikit-learn's conventions (``classes_``, ``n_outputs_``, ``coef_``, ...) are followed
by its look-alikes, so nothing here asks for a class. Floating outputs are float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dask_infer.model.runtime.methods import check_method
from dask_infer.model.shapes.boosting import (
    Described,
    attribute_of,
    boosted_outputs,
    one_array,
    values,
)
from dask_infer.model.shapes.kept_dtypes import gives_frames, keeping, own_dtype
from dask_infer.model.shapes.trace_errors import cannot_trace

#: Keywords that make predicting methods return something else than they do without.
_CHANGING = (
    *("n_neighbors", "radius", "return_cov", "return_distance", "return_std"),
    *("output_margin", "pred_contrib", "pred_contribs", "pred_interactions"),
    *("pred_leaf", "prediction_type", "raw_score", "sort_results", "strict_shape"),
)


def estimator_outputs(
    estimator: Any,
    method: str | None = None,
    call_kwargs: Mapping[str, Any] | None = None,
    given: Mapping[Any, str] | None = None,
) -> list[Described]:
    """Return what a method of a fitted estimator returns, one entry an array.

    Parameters
    ----------
    estimator
        A fitted estimator of scikit-learn or of a library that follows it.
    method
        ``"predict"``, ``"predict_proba"``, ``"transform"``, ...; None for ``predict``.
    call_kwargs
        Extra keyword arguments of the call.
    given
        Dtypes of the columns that it gets, "string" for text; None where not known.

    Raises
    ------
    MissingMethodError
        It has no such method.
    CannotTrace
        Its attributes do not tell: it is not fitted, or follows other conventions.
    """
    method, kind = method or "predict", type(estimator).__name__
    check_method(estimator, method)
    for keyword in {*_CHANGING}.intersection(call_kwargs or ()):
        reason = f"{keyword}= of call_kwargs changes what {method} of {kind} returns"
        raise cannot_trace(kind, reason)
    final = _final(estimator, method)
    described = boosted_outputs(final, method)
    if described is None and method in _METHODS:
        described = _METHODS[method](final)
    if described is None:
        reason = f"{kind} does not tell what {method} returns"
        if not _is_fitted(final):
            reason += " before it is fitted; call its fit() first where it was not"
        raise cannot_trace(kind, reason)
    return keeping(estimator, described, given or {}, method)


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
    classes, kind = getattr(estimator, "classes_", None), _type(estimator)
    if classes is not None and kind in (None, "classifier"):
        return _labels(estimator, classes)
    if kind == "outlier_detector":
        return one_array("int64")
    if kind == "clusterer" or hasattr(estimator, "labels_"):
        labels = getattr(estimator, "labels_", None)
        return one_array("int64" if labels is None else np.asarray(labels).dtype.name)
    if hasattr(estimator, "weights_") and hasattr(estimator, "means_"):
        return one_array("int64")  # a mixture's component
    is_linear = hasattr(estimator, "coef_") and not hasattr(estimator, "classes_")
    if kind != "regressor" and not is_linear:
        return None
    width = _width(estimator)
    return None if width is None else values(width)


def _labels(estimator: Any, classes: Any) -> list[Described] | None:
    """Return a label a row, or one for each of several outputs side by side."""
    if _is_multilabel(estimator):
        return one_array("int64", len(classes))
    if _is_chain(estimator):
        return one_array("float64", len(classes))
    if not _is_several(classes):
        return one_array(_class_dtype(classes))
    dtypes = {_class_dtype(each) for each in classes}
    return values(len(classes), dtypes.pop() if len(dtypes) == 1 else "object")


def _is_several(classes: Any) -> bool:
    """Whether there is a list of classes for each of several outputs."""
    return isinstance(classes, list) and all(np.ndim(each) == 1 for each in classes)


def _is_chain(estimator: Any) -> bool:
    """Whether each output's estimator reads those before: they are one matrix."""
    return hasattr(estimator, "order_") and isinstance(
        getattr(estimator, "estimators_", None), list
    )


def _class_dtype(classes: Any) -> str:
    """Return the dtype of the labels: texts are strings, floats float64."""
    array = np.asarray(classes)
    if array.dtype.kind == "O":
        texts = all(isinstance(label, str) for label in array.ravel())
        return "string" if texts and array.size else "object"
    return {"U": "string", "f": "float64"}.get(array.dtype.kind, array.dtype.name)


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
    if callable(check := getattr(estimator, "is_fitted", None)):  # CatBoost
        return bool(check())
    try:
        names = [*vars(estimator), "n_features_in_", "feature_importances_"]
    except TypeError:
        return True
    ends = (n for n in names if n.endswith("_") and not n.startswith("__"))
    return any(attribute_of(estimator, name) is not None for name in ends)


def _probabilities(estimator: Any) -> list[Described] | None:
    classes = getattr(estimator, "classes_", None)
    if classes is None:
        components = getattr(estimator, "weights_", None)  # of a mixture
        return None if components is None else one_array("float64", len(components))
    if _is_several(classes) and not _is_chain(estimator):
        return [(None, "float64", (len(each),)) for each in classes]
    return one_array("float64", len(classes))


def _decision(estimator: Any) -> list[Described] | None:
    classes = getattr(estimator, "classes_", None)
    if classes is None:
        return _scores(estimator)
    count = len(classes)
    if _is_several(classes):
        return one_array("float64", count) if _is_chain(estimator) else None
    if count == 2 and not _is_multilabel(estimator):
        return one_array("float64")
    if getattr(estimator, "decision_function_shape", None) == "ovo":
        count = count * (count - 1) // 2
    return one_array("float64", count)


def _scores(estimator: Any) -> list[Described] | None:
    return one_array("float64") if _is_fitted(estimator) else None


def _transform(estimator: Any) -> list[Described] | None:
    kind, dtype = type(estimator).__name__, own_dtype(estimator)
    if kind in _LABELS:
        return _LABELS[kind](estimator) if _is_fitted(estimator) else None
    if getattr(estimator, "func", estimator) is None:  # what it gets
        width = getattr(estimator, "n_features_in_", None)
        names = getattr(estimator, "feature_names_in_", None)
        if names is None or estimator.validate:
            return None if width is None else one_array(dtype, int(width))
        return [(str(name), dtype, ()) for name in names]
    names = _feature_names(estimator)
    if names is not None and gives_frames(estimator):
        return [(name, dtype, ()) for name in names]
    width = len(names) if names is not None else _components(estimator)
    return None if width is None else one_array(dtype, width)


def _binarized(estimator: Any) -> list[Described]:
    width = len(estimator.classes_)
    binary = width == 2 and getattr(estimator, "y_type_", None) == "binary"
    return one_array("int64", 1 if binary else width)


#: Transformers of labels: they read one column.
_LABELS: dict[str, Callable[[Any], list[Described]]] = {
    "LabelEncoder": lambda _: one_array("int64"),
    "LabelBinarizer": _binarized,
    "MultiLabelBinarizer": _binarized,
    "IsotonicRegression": lambda _: one_array("float64"),
}


def _feature_names(estimator: Any) -> list[str] | None:
    """Return the names of the columns that ``transform`` gives, where it knows them."""
    try:
        return [str(name) for name in estimator.get_feature_names_out()]
    except Exception:  # not fitted, or a step that knows none
        return None


def _components(estimator: Any) -> int | None:
    for attribute in ("_n_features_out", "n_components_", "n_components", "n_features"):
        count = getattr(estimator, attribute, None)
        if isinstance(count, (int, np.integer)) and not isinstance(count, bool):
            return int(count)
    return None


def _leaves(estimator: Any) -> list[Described] | None:
    """Return the leaf of each tree, as trees, forests and boosted trees number them."""
    if hasattr(estimator, "tree_"):
        return one_array("int64")
    members = getattr(estimator, "estimators_", None)
    if isinstance(members, list) and all(hasattr(each, "tree_") for each in members):
        return one_array("int64", len(members))
    if np.ndim(members) != 2:  # type: ignore[arg-type]
        return None
    classifies = hasattr(estimator, "classes_")
    shape = np.shape(members)  # type: ignore[arg-type]
    return one_array("float64", *(shape if classifies else shape[:1]))


def _path(estimator: Any) -> list[Described] | None:
    """Return which nodes of a tree a row passes; a forest returns more than rows."""
    tree = getattr(estimator, "tree_", None)
    return None if tree is None else one_array("int64", int(tree.node_count))


def _nearest(estimator: Any) -> list[Described] | None:
    """Return distances and places of the nearest rows that were fitted."""
    count = getattr(estimator, "n_neighbors_", getattr(estimator, "n_neighbors", None))
    if count is None or not _is_fitted(estimator):
        return None
    return one_array("float64", int(count)) + one_array("int64", int(count))


def _within_radius(estimator: Any) -> list[Described] | None:
    """Return as many distances and places as there are rows within the radius."""
    ragged: tuple[int | None, ...] = (None,)
    fitted = _is_fitted(estimator)
    return [(None, "float64", ragged), (None, "int64", ragged)] if fitted else None


def _graph(estimator: Any) -> list[Described] | None:
    count = getattr(estimator, "n_samples_fit_", None)
    return None if count is None else one_array("float64", int(count))


_METHODS: dict[str, Callable[[Any], list[Described] | None]] = {
    "predict": _predict,
    "predict_proba": _probabilities,
    "predict_log_proba": _probabilities,
    "predict_joint_log_proba": _probabilities,
    "decision_function": _decision,
    "score_samples": _scores,
    "mahalanobis": _scores,
    "decision_path": _path,
    "transform": _transform,
    "apply": _leaves,
    "kneighbors": _nearest,
    "kneighbors_graph": _graph,
    "radius_neighbors": _within_radius,
    "radius_neighbors_graph": _graph,
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
