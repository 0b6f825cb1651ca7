"""Fitted estimators of the catalogue."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from tests.oracle.entries import Arg, Entry, Out
from tests.oracle.frames import NULLABLE, WORDS

ROWS = 40
#: All but half precision, in which estimators compute where they get it.
DTYPES = tuple(d for kind in ("float", "text") for d in NULLABLE[kind])
DTYPES = tuple(d for d in DTYPES if d != "float16")
#: scikit-learn's clusters of doubles refuse singles.
DOUBLES = ("float64", "Float64", "double[pyarrow]", "decimal")


@cache
def data() -> pd.DataFrame:
    """What all estimators were fitted on, in plain pandas."""
    random = np.random.default_rng(0)
    frame = pd.DataFrame(random.integers(-16, 16, (ROWS, 2)) / 4, columns=["a", "b"])
    frame["t"] = pd.Series([WORDS[i % 6] for i in range(ROWS)], dtype=object)
    frame["u"] = pd.Series(
        [None if i % 5 == 0 else WORDS[i % 3] for i in range(ROWS)], dtype=object
    )
    frame["y"] = frame["a"] - frame["b"]
    frame["label"] = np.where(frame["y"] > 0, "up", "down")
    return frame


def fitted(build: Any, columns: Any, target: Any = None) -> Any:
    """Return a cached factory of a fitted estimator."""

    @cache
    def make() -> Any:
        frame = data()
        y = None if target is None else target(frame)
        return build().fit(frame[columns], y)

    return make


def one_row(columns: Any, values: Any) -> Any:
    """Return one row as plain pandas has it: a frame, or a Series for one name."""
    frame = pd.DataFrame(
        {
            name: pd.Series([value], dtype=object if _is_text(value) else None)
            for name, value in zip(
                [columns] if isinstance(columns, str) else columns, values, strict=True
            )
        }
    )
    return frame[columns]


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _entry(name: str, build: Any, columns: Any, **more: Any) -> Entry:
    target = more.pop("target", None)
    outputs = more.pop("outputs", Out("float64"))
    method = more.pop("method", "predict")
    make = fitted(build, columns, target)
    names = (columns,) if isinstance(columns, str) else tuple(columns)
    holds = tuple("text" if n in "tu" else "float" for n in names)
    kind: Any = "text" if columns == "t" else "frame"
    missing = more.pop("missing", True)
    arg = Arg(
        kind, holds, names=names, missing=missing, dtypes=more.pop("dtypes", DTYPES)
    )
    pick = more.pop("pick", _first)

    def alone(values: Any) -> Any:
        row = one_row(columns, values if kind == "frame" else [values])
        numbers = row.select_dtypes("number") if kind == "frame" else row
        row = row if numbers is row else row.astype(dict.fromkeys(numbers, "float64"))
        return pick(getattr(make(), method)(row))

    call = more.pop("call", {})
    if method != "predict":
        call = {"method": method} | call
    outputs = {"": outputs} if isinstance(outputs, Out) else outputs
    settled = {"tolerance": 1e-6, "weight": 2, "reads": "frame"} | more
    return Entry(name, make, (arg,), outputs, alone, call=call, **settled)


def _first(found: Any) -> Any:
    if hasattr(found, "toarray"):
        found = found.toarray()
    row = found[0]
    return row.tolist() if isinstance(row, np.ndarray) else row


def _both(found: Any) -> Any:
    return {str(place): _first(value) for place, value in enumerate(found)}


def linear() -> Any:
    from sklearn.linear_model import LinearRegression

    return LinearRegression()


def logistic() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression()


def text_classifier() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline

    return make_pipeline(TfidfVectorizer(token_pattern=r"\S+"), logistic())


def vectorizer() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(token_pattern=r"\S+")


def one_hot() -> Any:
    from sklearn.preprocessing import OneHotEncoder

    return OneHotEncoder(handle_unknown="ignore")


def one_hot_classifier() -> Any:
    from sklearn.pipeline import make_pipeline

    return make_pipeline(one_hot(), logistic())


def mixed_classifier() -> Any:
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline

    columns = make_column_transformer(
        (SimpleImputer(), ["a"]), (one_hot(), ["u"]), (vectorizer(), "t")
    )
    return make_pipeline(columns, logistic())


def imputer() -> Any:
    from sklearn.impute import SimpleImputer

    return SimpleImputer(strategy="mean")


def scaler() -> Any:
    from sklearn.preprocessing import StandardScaler

    return StandardScaler()


def boosting() -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(max_iter=3, min_samples_leaf=2)


def tree() -> Any:
    from sklearn.tree import DecisionTreeRegressor

    return DecisionTreeRegressor(max_depth=3)


def many_tree() -> Any:
    from sklearn.tree import DecisionTreeClassifier

    return DecisionTreeClassifier(max_depth=3)


def clusters() -> Any:
    from sklearn.cluster import KMeans

    return KMeans(3, n_init=1, random_state=0)


def chain() -> Any:
    from sklearn.multioutput import ClassifierChain

    return ClassifierChain(logistic())


def neighbors() -> Any:
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=2)


def density() -> Any:
    from sklearn.neighbors import KernelDensity

    return KernelDensity()


def boosted_trees() -> Any:
    from xgboost import XGBRegressor

    return XGBRegressor(n_estimators=2, max_depth=2, n_jobs=1)


def _y(frame: pd.DataFrame) -> Any:
    return frame["y"]


def _label(frame: pd.DataFrame) -> Any:
    return frame["label"]


def _two(frame: pd.DataFrame) -> Any:
    return frame[["y", "a"]]


def _two_labels(frame: pd.DataFrame) -> Any:
    return np.stack([frame["a"] > 0, frame["b"] > 0], 1).astype(int)


AB = ["a", "b"]
STRING, VECTOR = Out("string"), Out("float64", 1)

ENTRIES = (
    _entry("linear regression", linear, AB, target=_y),
    _entry("regression of two", linear, AB, target=_two, outputs=VECTOR),
    _entry("classes", logistic, AB, target=_label, outputs=STRING),
    _entry(
        "probabilities",
        logistic,
        AB,
        target=_label,
        outputs=VECTOR,
        method="predict_proba",
    ),
    _entry("decision", logistic, AB, target=_label, method="decision_function"),
    _entry(
        "text classes",
        text_classifier,
        "t",
        target=_label,
        outputs=STRING,
        missing=False,
        weight=4,
    ),
    _entry(
        "text probabilities",
        text_classifier,
        "t",
        target=_label,
        outputs=VECTOR,
        method="predict_proba",
        missing=False,
    ),
    _entry(
        "tf-idf", vectorizer, "t", outputs=VECTOR, method="transform", missing=False
    ),
    _entry(
        "one-hot classes",
        one_hot_classifier,
        ["u"],
        target=_label,
        outputs=STRING,
        weight=4,
    ),
    _entry("one-hot", one_hot, ["u"], outputs=VECTOR, method="transform"),
    _entry(
        "mixed classes",
        mixed_classifier,
        ["a", "u", "t"],
        target=_label,
        outputs=VECTOR,
        method="predict_proba",
        missing=False,
    ),
    _entry("imputed", imputer, AB, outputs=VECTOR, method="transform"),
    _entry("scaled columns", scaler, AB, outputs=VECTOR, method="transform"),
    _entry("boosted", boosting, AB, target=_label, outputs=STRING, weight=1),
    _entry("tree", tree, AB, target=_y),
    _entry("clusters", clusters, AB, outputs=Out("int32"), dtypes=DOUBLES),
    _entry(
        "distances", clusters, AB, outputs=VECTOR, method="transform", dtypes=DOUBLES
    ),
    _entry("chain", chain, AB, target=_two_labels, outputs=VECTOR),
    _entry("density", density, AB, method="score_samples"),
    _entry(
        "neighbors",
        neighbors,
        AB,
        outputs={"0": VECTOR, "1": Out("int64", 1)},
        method="kneighbors",
        pick=_both,
    ),
    _entry("trees of two", many_tree, AB, target=_two_labels, outputs=Out("int64", 1)),
    _entry("XGBoost of two", boosted_trees, AB, target=_two, outputs=VECTOR),
)
