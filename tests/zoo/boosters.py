"""XGBoost, LightGBM and CatBoost: scikit-learn's interface and their own boosters."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import pandas as pd

from tests.zoo.estimators import METHODS, ROWS, X, _has, columns_of, data
from tests.zoo.judge import Case, Column, Trial

SMALL = {
    "xgboost": {"n_estimators": 3, "max_depth": 2, "n_jobs": 1},
    "lightgbm": {
        "n_estimators": 3, "num_leaves": 4, "min_child_samples": 2, "verbose": -1,
        "n_jobs": 1,
    },
    "catboost": {
        "iterations": 3, "depth": 2, "verbose": False, "allow_writing_files": False,
        "thread_count": 1,
    },
}  # fmt: skip

#: Library, class, and the targets that it is fitted to.
MODELS = (
    ("xgboost", "XGBClassifier", ("two", "codes", "multilabel")),
    ("xgboost", "XGBRegressor", ("y", "values")),
    ("xgboost", "XGBRFClassifier", ("two", "codes")),
    ("xgboost", "XGBRFRegressor", ("y",)),
    ("xgboost", "XGBRanker", ("rank",)),
    ("lightgbm", "LGBMClassifier", ("two", "three", "codes")),
    ("lightgbm", "LGBMRegressor", ("y",)),
    ("lightgbm", "LGBMRanker", ("rank",)),
    ("catboost", "CatBoostClassifier", ("two", "three", "codes", "multilabel")),
    ("catboost", "CatBoostRegressor", ("y", "values")),
    ("catboost", "CatBoostRanker", ("rank",)),
    ("catboost", "CatBoost", ("y",)),
)

#: Boosters of their own interface, each named by an objective.
BOOSTERS = (
    ("xgboost", "binary:logistic", "two"),
    ("xgboost", "multi:softprob", "codes"),
    ("xgboost", "multi:softmax", "codes"),
    ("xgboost", "reg:squarederror", "y"),
    ("xgboost", "rank:pairwise", "rank"),
    ("lightgbm", "binary", "two"),
    ("lightgbm", "multiclass", "codes"),
    ("lightgbm", "regression", "y"),
    ("lightgbm", "lambdarank", "rank"),
)


@functools.cache
def rows() -> pd.DataFrame:
    """Scikit-learn's rows with targets for boosters."""
    frame = data()
    frame["codes"] = frame["three"].map({"low": 0, "mid": 1, "top": 2})
    frame["rank"] = frame["codes"]
    return frame


def target(name: str) -> Any:
    frame = rows()
    if name == "values":
        return frame[["y", "a"]].to_numpy()
    if name == "multilabel":
        return np.column_stack([frame["two"], (frame["a"] > 0).astype("int64")])
    return frame[name]


@functools.cache
def fitted(library: str, name: str, goal: str, arrays: bool) -> Any:
    """Return a fitted estimator of the library's scikit-learn interface."""
    kind = getattr(importlib.import_module(library), name)
    given = dict(SMALL[library])
    if library == "catboost" and goal in ("values", "multilabel"):
        given["loss_function"] = "MultiRMSE" if goal == "values" else "MultiLogloss"
    frame = rows()[X]
    read = frame.to_numpy() if arrays else frame
    groups = {
        "xgboost": {"qid": np.repeat(range(6), 10)},
        "lightgbm": {"group": [10] * 6},
        "catboost": {"group_id": np.repeat(range(6), 10)},
    }[library]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = kind(given) if name == "CatBoost" else kind(**given)
        return model.fit(read, target(goal), **(groups if goal == "rank" else {}))


def trial(library: str, name: str, goal: str, arrays: bool, method: str) -> Trial:
    estimator = fitted(library, name, goal, arrays)
    frame = rows().head(ROWS)
    read = frame[X].to_numpy() if arrays else frame[X]

    def expected() -> list[Column]:
        return columns_of(getattr(estimator, method)(read))

    # Without columns= where the estimator knows its own.
    call: dict[str, Any] = {"method": method, "batch_size": 2}
    call |= {"columns": X} if arrays else {}
    kept = frame[X] if arrays else frame[["text", *X[::-1]]]
    return Trial(estimator, kept, call, expected, rtol=1e-6)


def booster(library: str, objective: str, goal: str) -> Any:
    """Return a booster of the library's own interface."""
    frame = rows()[X]
    if library == "xgboost":
        import xgboost

        matrix = xgboost.DMatrix(frame, target(goal))
        if goal == "rank":
            matrix.set_group([10] * 6)
        given = {"objective": objective, "max_depth": 2, "nthread": 1}
        given |= {"num_class": 3} if goal == "codes" else {}
        return xgboost.train(given, matrix, num_boost_round=3)
    import lightgbm

    sizes = {"group": [10] * 6} if goal == "rank" else {}
    given = {"objective": objective, "verbose": -1, "num_threads": 1}
    given |= {"min_data_in_leaf": 2, "num_leaves": 4}
    given |= {"num_class": 3} if goal == "codes" else {}
    matrix = lightgbm.Dataset(frame, target(goal), **sizes)
    return lightgbm.train(given, matrix, num_boost_round=3)


def booster_trial(library: str, objective: str, goal: str, method: str | None) -> Trial:
    model = booster(library, objective, goal)
    frame = rows().head(ROWS)

    def expected() -> list[Column]:
        own = "inplace_predict" if library == "xgboost" else "predict"
        return columns_of(getattr(model, own)(frame[X]))

    call: dict[str, Any] = {"batch_size": 2, "columns": X, "method": method}
    return Trial(model, frame, call, expected, rtol=1e-6)


def cases(only: Collection[str] = ()) -> Iterator[Case]:
    """Each library in both interfaces, or some classes by name."""
    for library, name, goals in MODELS:
        if only and name not in only:
            continue
        for goal in goals:
            for arrays in (False, True):
                estimator = fitted(library, name, goal, arrays)
                for method in METHODS:
                    if not _has(estimator, method) or not _works(
                        estimator, method, arrays
                    ):
                        continue
                    where = f"{name}.{method}[{goal}{', arrays' * arrays}]"
                    what = functools.partial(trial, library, name, goal, arrays, method)
                    yield Case(where, library, what)
    for library, objective, goal in () if only else BOOSTERS:
        own = "inplace_predict" if library == "xgboost" else "predict"
        for method in (own, None):
            what = functools.partial(booster_trial, library, objective, goal, method)
            where = f"{library}.Booster" + (f".{method}" if method else "")
            yield Case(f"{where}[{objective}]", library, what)


def _works(estimator: Any, method: str, arrays: bool) -> bool:
    """Whether the estimator has the method for the target it was fitted to."""
    frame = rows().head(ROWS)[X]
    try:
        getattr(estimator, method)(frame.to_numpy() if arrays else frame)
    except Exception:
        return False
    return True
