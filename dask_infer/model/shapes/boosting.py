"""XGBoost, LightGBM and CatBoost: what their models say of themselves, in their words.

Their estimators follow scikit-learn in part; their native boosters, which come without
``classes_`` or ``n_features_in_``, not at all. Nothing here predicts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

#: Name of a column or None, dtype ("float64", "int64", "string", ...), shape of a row.
Described = tuple[str | None, str, tuple[int | None, ...]]

#: Losses of CatBoost whose labels are a column of 0 and 1 each.
_MULTILABEL = ("MultiLogloss", "MultiCrossEntropy")


def feature_names(estimator: Any, columns: Iterable[Any] = ()) -> list[Any] | None:
    """Return the columns that an estimator was fitted on; None where it knows none.

    Parameters
    ----------
    estimator
        Any fitted estimator.
    columns
        Labels of the frame at hand: LightGBM writes underscores for spaces, and all
        three make text of labels, so the labels themselves are returned.
    """
    names = _own_names(estimator)
    if not names:
        return None
    known = list(columns)
    spelled = {str(label).replace(" ", "_"): label for label in known}
    return [name if name in known else spelled.get(name, name) for name in names]


def _own_names(estimator: Any) -> list[Any]:
    found = attribute_of(estimator, "feature_names_in_")
    if found is not None:
        return list(found)
    library = library_of(estimator)
    if library == "xgboost":
        return list(attribute_of(estimator, "feature_names") or ())
    if library == "catboost":
        return _given(attribute_of(estimator, "feature_names_"), "{}")
    if library == "lightgbm":
        names = attribute_of(_lightgbm(estimator), "feature_name")
        return _given(None if names is None else names(), "Column_{}")
    return []


def _given(names: Any, default: str) -> list[Any]:
    """Return names; none where the library numbered the columns of an array."""
    names = list(names or ())
    numbered = [default.format(place) for place in range(len(names))]
    return [] if names == numbered else names


def library_of(estimator: Any) -> str | None:
    """Return which of the three libraries an estimator or booster comes from."""
    for kind in type(estimator).__mro__:
        library = kind.__module__.partition(".")[0]
        if library in _OUTPUTS:
            return library
    return None


def boosted_outputs(estimator: Any, method: str) -> list[Described] | None:
    """Return what a method returns where scikit-learn's conventions do not say it."""
    library = library_of(estimator)
    return None if library is None else _OUTPUTS[library](estimator, method)


def native_predict(estimator: Any) -> Callable[..., Any] | None:
    """Return ``predict`` of a frame for a booster that reads only its own matrices."""
    if library_of(estimator) != "xgboost" or hasattr(estimator, "get_booster"):
        return None
    import xgboost

    def predict(frame: Any, **kwargs: Any) -> Any:
        matrix = xgboost.DMatrix(frame, enable_categorical=True)
        return estimator.predict(matrix, **kwargs)

    return predict


def _xgboost(estimator: Any, method: str) -> list[Described] | None:
    native = not hasattr(estimator, "get_booster")
    try:
        booster = estimator if native else estimator.get_booster()
        learner = json.loads(booster.save_config())["learner"]
    except Exception:  # not fitted
        return None
    if booster.num_boosted_rounds() == 0:
        return None
    sizes = learner["learner_model_param"]
    classes, targets = int(sizes["num_class"]), int(sizes["num_target"])
    if method == "apply":
        return _xgboost_leaves(booster, learner)
    if hasattr(estimator, "classes_"):
        several = method in ("predict", "predict_proba") and targets > 1
        return one_array("float64", targets) if several else None
    labels = native and learner["objective"]["name"] == "multi:softmax"
    width = 1 if labels else max(classes, targets)
    methods = ("predict", "inplace_predict") if native else ("predict",)
    return values(width) if method in methods else None


def _xgboost_leaves(booster: Any, learner: Any) -> list[Described] | None:
    model = learner["gradient_booster"].get("gbtree_model_param")
    if model is None or booster.attr("best_iteration") is not None:
        return None
    return one_array("float64", int(model["num_trees"]))


def _lightgbm(estimator: Any) -> Any:
    if not hasattr(type(estimator), "booster_"):
        return estimator
    return attribute_of(estimator, "booster_")


def _lightgbm_outputs(estimator: Any, method: str) -> list[Described] | None:
    booster = _lightgbm(estimator)
    if booster is None or hasattr(estimator, "classes_") or method != "predict":
        return None
    return values(int(booster.num_model_per_iteration()))


def _catboost(estimator: Any, method: str) -> list[Described] | None:
    leaves = sum(estimator.get_tree_leaf_counts())
    if not leaves:
        return None
    if method == "calc_leaf_indexes":
        return one_array("uint32", int(estimator.tree_count_))
    if method != "predict":
        return None
    if getattr(estimator, "_estimator_type", None) != "classifier":
        return values(len(estimator.get_leaf_values()) // leaves)
    if estimator.get_all_params().get("loss_function") not in _MULTILABEL:
        return None
    return one_array("int64", len(estimator.classes_))


_OUTPUTS: dict[str, Callable[[Any, str], list[Described] | None]] = {
    "xgboost": _xgboost,
    "lightgbm": _lightgbm_outputs,
    "catboost": _catboost,
}


def one_array(dtype: str, *shape: int) -> list[Described]:
    """Describe an array with rows of this shape."""
    return [(None, dtype, shape)]


def values(width: int, dtype: str = "float64") -> list[Described]:
    """Describe an array of numbers: one a row, or several side by side."""
    return one_array(dtype) if width <= 1 else one_array(dtype, width)


def attribute_of(subject: Any, name: str) -> Any:
    """Return an attribute; None where it is missing or cannot be had yet."""
    try:
        return getattr(subject, name, None)
    except Exception:  # look-alikes raise errors of their own
        return None
