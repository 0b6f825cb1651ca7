"""Every estimator of scikit-learn, fitted, with each of its prediction methods."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import pandas as pd

from tests.zoo.judge import Case, Column, Trial

#: Methods that return something for each row.
METHODS = (
    "predict",
    "predict_proba",
    "predict_log_proba",
    "predict_joint_log_proba",
    "decision_function",
    "transform",
    "score_samples",
    "apply",
    "decision_path",
    "kneighbors",
    "kneighbors_graph",
    "radius_neighbors",
    "radius_neighbors_graph",
    "mahalanobis",
)

ROWS = 7

#: Iterate until all rows of a call have converged, or draw random numbers.
NOT_ROW_WISE = {"NMF", "MiniBatchNMF"}
#: Draw random numbers at each call.
RANDOM = {("BernoulliRBM", "score_samples")}
#: Forests give an array of all rows' nodes and where each tree's nodes begin.
NOT_ROWS = "decision_path of forests"


def data() -> pd.DataFrame:
    """60 rows: four numbers, a text, integers and targets."""
    random = np.random.default_rng(0)
    frame = pd.DataFrame(random.normal(size=(60, 4)), columns=list("abcd"))
    total = frame[list("abcd")].sum(axis=1) + random.normal(size=60) / 4
    words = np.array(["red", "green", "blue", "dog", "cat", "runs"])
    frame["text"] = [" ".join(random.choice(words, 4)) for _ in range(60)]
    frame["y"] = total
    frame["two"] = (total > 0).astype("int64")
    frame["three"] = np.array(["low", "mid", "top"])[np.digitize(total, (-1, 1))]
    return frame


X = list("abcd")


def needed() -> dict[str, Callable[[type], Any]]:
    """Arguments of estimators that cannot do without, or fail on so few rows."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.preprocessing import StandardScaler

    classifier, regressor = LogisticRegression(), LinearRegression()
    cs = {"estimator": classifier}
    two = [("one", LogisticRegression()), ("other", LogisticRegression(C=0.1))]
    three = [("one", LinearRegression()), ("other", LinearRegression(positive=True))]
    parts = [("scale", StandardScaler(), ["a", "b"]), ("pca", PCA(1), ["c", "d"])]
    given: dict[str, dict[str, Any]] = {
        "ClassifierChain": cs,
        "FixedThresholdClassifier": cs,
        "FrozenEstimator": {"estimator": None},
        "MultiOutputClassifier": cs,
        "MultiOutputRegressor": {"estimator": regressor},
        "OneVsOneClassifier": cs,
        "OneVsRestClassifier": cs,
        "OutputCodeClassifier": cs,
        "RFE": cs,
        "RFECV": cs,
        "SelfTrainingClassifier": cs,
        "TransformedTargetRegressor": {"regressor": regressor},
        "SelectFromModel": cs,
        "SequentialFeatureSelector": cs,
        "TunedThresholdClassifierCV": cs,
        "RegressorChain": {"estimator": regressor},
        "GridSearchCV": {**cs, "param_grid": {"C": [0.1, 1]}},
        "RandomizedSearchCV": {
            **cs,
            "param_distributions": {"C": [0.1, 1]},
            "n_iter": 2,
        },
        "ColumnTransformer": {"transformers": parts},
        "FeatureUnion": {
            "transformer_list": [("scale", StandardScaler()), ("pca", PCA(2))]
        },
        "Pipeline": {"steps": [("scale", StandardScaler()), ("model", classifier)]},
        "StackingClassifier": {"estimators": two},
        "VotingClassifier": {"estimators": two, "voting": "soft"},
        "StackingRegressor": {"estimators": three},
        "VotingRegressor": {"estimators": three},
        "SparseCoder": {"dictionary": np.eye(4)},
        "GaussianRandomProjection": {"n_components": 2},
        "SparseRandomProjection": {"n_components": 2},
        "LocalOutlierFactor": {"novelty": True},
        "SelectKBest": {"k": 2},
        "GenericUnivariateSelect": {"mode": "k_best", "param": 2},
        "HashingVectorizer": {"n_features": 16},
        "FeatureHasher": {"n_features": 16, "input_type": "string"},
        "TSNE": {"perplexity": 5},
        "CCA": {"n_components": 1},
        "PLSCanonical": {"n_components": 1},
        "PLSSVD": {"n_components": 1},
        "SVC": {"probability": True},
        "NuSVC": {"probability": True},
        "RadiusNeighborsClassifier": {"radius": 3.0},
        "RadiusNeighborsRegressor": {"radius": 3.0},
        "NearestNeighbors": {"radius": 1.5},
        "PatchExtractor": {"patch_size": (4, 4)},
        "BernoulliRBM": {"n_components": 3},
        "MiniBatchDictionaryLearning": {"n_components": 3},
        "DictionaryLearning": {"n_components": 3},
        "NMF": {"n_components": 2},
        "MiniBatchNMF": {"n_components": 2},
        "LatentDirichletAllocation": {"n_components": 2},
    }
    small = {
        name: {"n_estimators": 5}
        for name in (
            "AdaBoostClassifier",
            "AdaBoostRegressor",
            "BaggingClassifier",
            "BaggingRegressor",
            "ExtraTreesClassifier",
            "ExtraTreesRegressor",
            "GradientBoostingClassifier",
            "GradientBoostingRegressor",
            "IsolationForest",
            "RandomForestClassifier",
            "RandomForestRegressor",
            "RandomTreesEmbedding",
        )
    }
    small |= {
        name: {"max_iter": 5}
        for name in ("HistGradientBoostingClassifier", "HistGradientBoostingRegressor")
    }
    small |= {name: {"max_iter": 30} for name in ("MLPClassifier", "MLPRegressor")}
    return given | small


#: Estimators that read one column, as a Series.
SERIES = {
    "CountVectorizer": "text",
    "TfidfVectorizer": "text",
    "HashingVectorizer": "text",
    "LabelEncoder": "three",
    "LabelBinarizer": "three",
    "IsotonicRegression": "a",
}

#: Not fitted to arrays: they name columns, or read other things than numbers.
NEEDS_NAMES = {
    "ColumnTransformer": None,
    "DictVectorizer": None,
    "FeatureHasher": None,
    "FrozenEstimator": None,
    "MultiLabelBinarizer": None,
    "PatchExtractor": None,
}

#: Need a target although their tags do not say so.
SUPERVISED = {
    "PLSSVD",
    "SelectFromModel",
    "SelectKBest",
    "SelectPercentile",
    "SequentialFeatureSelector",
}

#: Targets that are fitted, by a name of their own.
Target = tuple[str, Callable[[pd.DataFrame], Any]]

MULTILABEL: Target = (
    "multilabel",
    lambda f: np.column_stack([f["two"], (f["a"] > 0).astype("int64")]),
)
MULTICLASS: Target = ("multioutput", lambda f: f[["two", "three"]].to_numpy(object))
TWO: Target = ("two", lambda f: f["two"])
THREE: Target = ("three", lambda f: f["three"])
VALUE: Target = ("value", lambda f: f["y"])
POSITIVE: Target = ("value", lambda f: f["y"].abs() + 0.1)
VALUES: Target = ("values", lambda f: f[["y", "a"]].to_numpy())
NONE: Target = ("", lambda f: None)


def make(name: str, kind: type) -> Any:
    """Return an unfitted estimator."""
    if name == "FrozenEstimator":
        from sklearn.linear_model import LogisticRegression

        frame = data()
        return kind(LogisticRegression().fit(frame[X], frame["two"]))
    estimator = kind(**needed().get(name, {}))
    if "random_state" in estimator.get_params(deep=False):
        estimator.set_params(random_state=0)
    return estimator


def targets(estimator: Any, name: str) -> list[Target]:
    """Return what is tried as the target of an estimator."""
    from sklearn.base import is_classifier, is_regressor

    tags = estimator.__sklearn_tags__().target_tags
    if name in ("MultiOutputClassifier", "ClassifierChain"):
        return [MULTILABEL]
    if name in ("MultiOutputRegressor", "RegressorChain"):
        return [VALUES]
    if tags.multi_output and not tags.single_output:
        return [VALUES]
    if is_classifier(estimator):
        only_two = not estimator.__sklearn_tags__().classifier_tags.multi_class
        found = [TWO] if only_two else [TWO, THREE]
        return [*found, MULTILABEL] if tags.multi_output else found
    if tags.positive_only:
        return [POSITIVE]
    if is_regressor(estimator):
        return [VALUE, VALUES] if tags.multi_output else [VALUE]
    return [TWO] if tags.required or name in SUPERVISED else [NONE]


@functools.cache
def fitted(
    name: str, kind: type, target: Target, arrays: bool = False
) -> tuple[Any, pd.DataFrame, Any]:
    """Return a fitted estimator, the rows it predicts and how columns are named."""
    frame = data()
    estimator = make(name, kind)
    tags = estimator.__sklearn_tags__().input_tags
    columns: Any = SERIES.get(name, X)
    if name == "KernelCenterer":
        return estimator.fit(frame[X].head(4)), frame.head(ROWS), columns
    if tags.positive_only or name in ("AdditiveChi2Sampler", "SkewedChi2Sampler"):
        frame[X] = frame[X].abs()
    if tags.categorical and not name.startswith("Hist") and name != "SimpleImputer":
        frame[X] = frame[X].abs().clip(upper=2.9).astype("int64")
        if name != "CategoricalNB":
            frame["c"] = frame["three"]
            columns = ["a", "c"]
    if name == "DictVectorizer":
        frame["rows"] = [{"p": float(a), "q": 1.0} for a in frame["a"]]
        columns = "rows"
    elif name == "FeatureHasher":
        frame["rows"] = [text.split() for text in frame["text"]]
        columns = "rows"
    elif name == "MultiLabelBinarizer":
        frame["rows"] = [sorted(set(text.split())) for text in frame["text"]]
        columns = "rows"
    elif name == "PatchExtractor":
        random = np.random.default_rng(0)
        frame["rows"] = list(random.normal(size=(60, 4, 4)))
        columns = "rows"
    y = target[1](frame)
    read = frame[columns]
    if columns == "rows" and name == "PatchExtractor":
        read = np.stack(list(read))
    if arrays:
        read = read.to_numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            estimator.fit(read) if y is None else estimator.fit(read, y)
        except Exception as error:
            raise RuntimeError(f"{name} cannot be fitted: {error}") from error
    return estimator, frame.head(ROWS), columns


def columns_of(output: Any) -> list[Column]:
    """Return what an estimator's output is as columns."""
    if hasattr(output, "toarray"):
        output = output.toarray()
    if isinstance(output, pd.DataFrame):
        return [Column(str(name), list(output[name])) for name in output]
    if isinstance(output, (list, tuple)) and isinstance(output[0], np.ndarray):
        return [Column(None, _rows(array)) for array in output]
    return [Column(None, _rows(np.asarray(output)))]


def _rows(array: np.ndarray[Any, Any]) -> list[Any]:
    if array.ndim > 1 and array.shape[1:] == (1,):
        array = array[:, 0]
    return list(array)


def stacked(frame: pd.DataFrame) -> np.ndarray[Any, Any]:
    """Return images as the one array that `PatchExtractor` takes."""
    return np.stack(list(frame["rows"]))


def trial(
    name: str, kind: type, target: Target, method: str, arrays: bool = False
) -> Trial:
    """Return one estimator's method against its own plain call."""
    estimator, frame, columns = fitted(name, kind, target, arrays)
    call: dict[str, Any] = {"columns": columns, "method": method, "batch_size": 2}
    partitions = 3
    if name == "PatchExtractor":
        call["preprocess"] = stacked
    if name in NOT_ROW_WISE:
        call |= {"row_wise": False, "batch_size": ROWS}
        partitions = 1
    read = frame[columns]
    if name == "PatchExtractor":
        read = np.stack(list(read))
    if arrays:
        read = read.to_numpy()

    def expected() -> list[Column]:
        return columns_of(getattr(estimator, method)(read))

    return Trial(estimator, frame, call, expected, partitions=partitions, rtol=1e-6)


def cases(only: Collection[str] = ()) -> Iterator[Case]:
    """Every estimator, or some by name, with every method for every kind of target."""
    from sklearn.utils import all_estimators

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, kind in all_estimators():
            if only and name not in only:
                continue
            for place, target in enumerate(targets(make(name, kind), name)):
                for method in _methods(name, kind, target):
                    where = f"{name}.{method}" + (f"[{target[0]}]" * bool(target[0]))
                    what = functools.partial(trial, name, kind, target, method)
                    yield Case(where, "scikit-learn", what)
                    if place == 0 and name not in SERIES | NEEDS_NAMES:
                        again = functools.partial(what, arrays=True)
                        yield Case(f"{where}, arrays", "scikit-learn, arrays", again)


def _methods(name: str, kind: type, target: Target) -> list[str]:
    if not any(hasattr(kind, method) for method in METHODS):
        return []
    estimator, *_ = fitted(name, kind, target)
    return [
        method
        for method in METHODS
        if (name, method) not in RANDOM
        and not (method == "decision_path" and hasattr(kind, "estimators_samples_"))
        and _has(estimator, method)
    ]


def _has(estimator: Any, method: str) -> bool:
    try:
        return callable(getattr(estimator, method, None))
    except Exception:
        return False
