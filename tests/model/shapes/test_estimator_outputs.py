"""Estimators tell what they return, and then return it."""

import numpy as np
import pytest

from dask_infer.model.runtime.methods import MissingMethodError
from dask_infer.model.shapes.estimator_outputs import estimator_outputs
from dask_infer.model.shapes.trace_errors import CannotTrace

pytest.importorskip("sklearn")

from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import DBSCAN, Birch, KMeans
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.covariance import EmpiricalCovariance
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.feature_selection import SelectFwe
from sklearn.impute import MissingIndicator
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import (
    BayesianRidge,
    Lasso,
    LinearRegression,
    LogisticRegression,
    Ridge,
)
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import (
    ClassifierChain,
    MultiOutputClassifier,
    MultiOutputRegressor,
)
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import (
    KernelDensity,
    KNeighborsRegressor,
    LocalOutlierFactor,
    NearestNeighbors,
)
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    LabelBinarizer,
    LabelEncoder,
    MultiLabelBinarizer,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    StandardScaler,
)
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeRegressor

RANDOM = np.random.default_rng(0)
X = RANDOM.random((60, 4))
THREE = RANDOM.integers(0, 3, 60)
TARGETS = {
    "binary": RANDOM.integers(0, 2, 60),
    "bool": RANDOM.integers(0, 2, 60).astype(bool),
    "three": THREE,
    "small": THREE.astype("int8"),
    "texts": np.array(["ham", "spam", "eggs"])[THREE],
    "objects": np.array(["ham", "spam", "eggs"], dtype=object)[THREE],
    "floats": THREE.astype("float32"),
    "value": RANDOM.random(60),
    "column": RANDOM.random((60, 1)),
    "values": RANDOM.random((60, 2)),
    "labels": RANDOM.integers(0, 2, (60, 3)),
}

FOREST = {"n_estimators": 3, "max_depth": 2}
LOGISTIC = LogisticRegression()
SEARCH = {"param_grid": {"alpha": [0.1, 1]}, "cv": 2}
COLUMNS = [("scaled", StandardScaler(), [0, 1]), ("same", "passthrough", [2])]

CASES = [
    *((LOGISTIC, target, "predict") for target in list(TARGETS)[:7]),
    (LOGISTIC, "three", "predict_proba"),
    (LOGISTIC, "three", "predict_log_proba"),
    (LOGISTIC, "three", "decision_function"),
    (LOGISTIC, "binary", "decision_function"),
    (SVC(decision_function_shape="ovo"), "three", "decision_function"),
    (SVC(), "texts", "predict"),
    (RandomForestClassifier(**FOREST), "labels", "predict"),
    (RandomForestClassifier(**FOREST), "labels", "predict_proba"),
    (MultiOutputClassifier(LOGISTIC), "labels", "predict"),
    (MLPClassifier((3,), max_iter=3), "labels", "predict"),
    (MLPClassifier((3,), max_iter=3), "labels", "predict_proba"),
    (OneVsRestClassifier(LOGISTIC), "labels", "predict"),
    (CalibratedClassifierCV(LOGISTIC, cv=2), "texts", "predict_proba"),
    (StackingClassifier([("a", LOGISTIC)], cv=2), "texts", "predict"),
    (VotingClassifier([("a", LOGISTIC)]), "texts", "predict"),
    (LinearRegression(), "value", "predict"),
    (LinearRegression(), "column", "predict"),
    (LinearRegression(), "values", "predict"),
    (Lasso(alpha=0.01), "values", "predict"),
    (KernelRidge(), "values", "predict"),
    (KNeighborsRegressor(), "values", "predict"),
    (RandomForestRegressor(**FOREST), "values", "predict"),
    (MultiOutputRegressor(Ridge()), "values", "predict"),
    (TransformedTargetRegressor(Ridge()), "values", "predict"),
    (GridSearchCV(Ridge(), **SEARCH), "values", "predict"),
    (make_pipeline(StandardScaler(), LOGISTIC), "texts", "predict"),
    (make_pipeline(StandardScaler(), LOGISTIC), "texts", "predict_proba"),
    (make_pipeline(StandardScaler(), "passthrough", PCA(2)), "value", "transform"),
    (PCA(3), "value", "transform"),
    (PolynomialFeatures(2), "value", "transform"),
    (ColumnTransformer(COLUMNS), "value", "transform"),
    (OneHotEncoder(max_categories=3, sparse_output=False), "value", "transform"),
    (OrdinalEncoder(dtype="int64"), "value", "transform"),
    (KMeans(3, n_init=1), "value", "predict"),
    (KMeans(3, n_init=1), "value", "transform"),
    (Birch(), "value", "predict"),
    (GaussianMixture(2), "value", "predict"),
    (GaussianMixture(2), "value", "predict_proba"),
    (GaussianMixture(2), "value", "score_samples"),
    (IsolationForest(n_estimators=3), "value", "predict"),
    (IsolationForest(n_estimators=3), "value", "decision_function"),
    (ClassifierChain(LOGISTIC), "labels", "predict"),
    (ClassifierChain(LOGISTIC), "labels", "predict_proba"),
    (ClassifierChain(LOGISTIC), "labels", "predict_log_proba"),
    (ClassifierChain(LOGISTIC), "labels", "decision_function"),
    (NearestNeighbors(n_neighbors=3), "value", "kneighbors"),
    (NearestNeighbors(n_neighbors=3), "value", "kneighbors_graph"),
    (LocalOutlierFactor(n_neighbors=3), "value", "kneighbors"),
    (KernelDensity(), "value", "score_samples"),
    (DecisionTreeRegressor(max_depth=2), "value", "apply"),
    (DecisionTreeRegressor(max_depth=2), "value", "decision_path"),
    (GaussianNB(), "three", "predict_joint_log_proba"),
    (EmpiricalCovariance(), "value", "mahalanobis"),
    (RandomForestClassifier(**FOREST), "three", "apply"),
    (GradientBoostingClassifier(**FOREST), "three", "apply"),
    (GradientBoostingRegressor(**FOREST), "value", "apply"),
    (VotingClassifier([("a", LOGISTIC), ("b", SVC())]), "texts", "transform"),
    (MissingIndicator(features="all"), "value", "transform"),
    (FunctionTransformer(), "value", "transform"),
]


def described(returned):
    """Describe arrays as a column holds them: floats are float64, texts strings."""
    arrays = returned if isinstance(returned, list | tuple) else [returned]
    kinds = {"U": "string", "O": "string", "f": "float64"}
    return [
        (
            kinds.get(a.dtype.kind, a.dtype.name),
            () if a.shape[1:] == (1,) else a.shape[1:],
        )
        for a in arrays
    ]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("estimator", "target", "method"), CASES)
def test_an_estimator_returns_what_is_described(estimator, target, method):  # DM-01..08
    estimator.fit(X, TARGETS[target])
    found = [(dtype, shape) for _, dtype, shape in estimator_outputs(estimator, method)]
    assert found == described(getattr(estimator, method)(X[:5]))


def test_rows_within_a_radius_are_ragged():
    nearest = NearestNeighbors(radius=0.5).fit(X)
    found = [(None, "float64", (None,)), (None, "int64", (None,))]
    assert estimator_outputs(nearest, "radius_neighbors") == found


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (LabelEncoder().fit(["a", "b", "c"]), ()),
        (LabelBinarizer().fit(["a", "b", "c"]), (3,)),
        (LabelBinarizer().fit(["a", "b"]), (1,)),
        (MultiLabelBinarizer().fit([["a"], ["b", "c"]]), (3,)),
    ],
)
def test_transformers_of_labels_declare_how_many_there_are(labels, expected):
    assert estimator_outputs(labels, "transform") == [(None, "int64", expected)]


@pytest.mark.parametrize(
    ("estimator", "method", "keyword"),
    [
        (BayesianRidge(), "predict", "return_std"),
        (NearestNeighbors(), "kneighbors", "n_neighbors"),
    ],
)
def test_a_keyword_that_changes_the_output_asks_for_meta(estimator, method, keyword):
    estimator.fit(X, TARGETS["value"])
    with pytest.raises(CannotTrace, match=rf"{keyword}= of call_kwargs.*meta="):
        estimator_outputs(estimator, method, call_kwargs={keyword: True})


@pytest.mark.filterwarnings("ignore:No features were selected")
def test_no_column_selected_is_rows_of_none():
    nothing = SelectFwe(alpha=1e-9).fit(X, THREE)
    given = dict.fromkeys("abcd", "float64")
    found = estimator_outputs(nothing, "transform", given=given)
    assert found == [(None, "float64", (0,))]


def test_nothing_is_called():  # DI-01
    class Shy(LogisticRegression):
        def predict(self, X):
            raise AssertionError

    assert estimator_outputs(Shy().fit(X, THREE)) == [(None, "int64", ())]


def test_frames_name_their_columns():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=list("abcd"))
    scaler = StandardScaler().set_output(transform="pandas").fit(frame)
    found = estimator_outputs(scaler, "transform")
    assert found == [(name, "float64", ()) for name in "abcd"]


class LookAlike:
    def __init__(self, **attributes):
        vars(self).update(attributes)

    def predict(self, frame):
        raise AssertionError


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"classes_": ["ham", "spam"]}, ("string", ())),
        ({"classes_": np.array([1, 2])}, ("int64", ())),
        ({"coef_": np.ones(3)}, ("float64", ())),
        ({"coef_": np.ones((2, 3))}, ("float64", (2,))),
        ({"_estimator_type": "regressor", "trees_": 3}, ("float64", ())),
        ({"_estimator_type": "regressor", "n_outputs_": 2}, ("float64", (2,))),
    ],
    ids=["texts", "numbers", "linear", "several", "regressor", "outputs"],
)
def test_look_alikes_declare_by_the_same_attributes(attributes, expected):
    found = estimator_outputs(LookAlike(**attributes))
    assert found == [(None, *expected)]


@pytest.mark.parametrize(
    ("estimator", "method"),
    [
        (LogisticRegression(), "predict"),
        (LinearRegression(), "predict"),
        (PCA(0.9), "transform"),
        (LookAlike(), "predict"),
        (FunctionTransformer(np.log1p).fit(X), "transform"),
        (RandomForestRegressor(**FOREST).fit(X, TARGETS["value"]), "decision_path"),
    ],
)
def test_what_is_not_found_asks_for_meta(estimator, method):
    with pytest.raises(CannotTrace, match=rf"does not tell what {method} .*meta="):
        estimator_outputs(estimator, method)


@pytest.mark.parametrize(
    ("estimator", "method", "words"),
    [
        (
            LinearRegression(),
            "predict_prob",
            "LinearRegression has no method predict_pr",
        ),
        (SVC(), "predict_proba", "SVC has no method predict_proba"),
        (DBSCAN(), "predict", "DBSCAN has no method predict.*fit_predict"),
    ],
)
def test_missing_method_names_estimator_and_method(estimator, method, words):
    with pytest.raises(MissingMethodError, match=words):  # DM-01..08
        estimator_outputs(estimator, method)


@pytest.mark.parametrize(
    ("estimator", "method", "hint"),
    [
        (LinearRegression(), "predict", "returns before it is fitted;"),
        (FunctionTransformer(np.log1p).fit(X), "transform", "transform returns;"),
    ],
)
def test_only_what_is_not_fitted_is_said_not_to_be(estimator, method, hint):
    with pytest.raises(CannotTrace, match=hint):
        estimator_outputs(estimator, method)
