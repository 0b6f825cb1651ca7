"""XGBoost, LightGBM and CatBoost: the promise, the columns, and the values."""

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest

from dask_infer.errors import OutputError
from dask_infer.model.recognise import recognise
from dask_infer.model.shapes.boosting import feature_names

RANDOM = np.random.default_rng(0)
FRAME = pd.DataFrame(RANDOM.random((60, 4)), columns=list("abcd"))
THREE = np.arange(60) % 3
TWO = THREE % 2
TEXTS = np.array(["ham", "spam", "eggs"])[THREE]
VALUE = RANDOM.random(60)
VALUES = RANDOM.random((60, 2))
LABELS = RANDOM.integers(0, 2, (60, 3))
GROUPS = np.repeat(np.arange(6), 10)

SMALL = {"n_estimators": 3, "max_depth": 2}
LIGHT = {**SMALL, "verbose": -1, "min_child_samples": 2}
CAT = {"iterations": 3, "depth": 2, "verbose": 0, "allow_writing_files": False}


def predicted(model, columns=None, frame=FRAME, **request):
    """Predict on the frame with a column more, its columns in another order."""
    wider = frame.assign(more=1.0)[["more", *reversed(list(frame))]]
    ddf = dd.from_pandas(wider, npartitions=3)
    lazy = ddf.infer.predict(model, columns=columns, keep=False, **request)
    frame = lazy.compute(scheduler="sync")
    assert (frame.dtypes == lazy.dtypes).all()
    return frame


def check(model, wanted, **request):
    got = predicted(model, batch_size=7, **request)["prediction"]
    values = np.array(got.tolist())
    wanted = np.squeeze(wanted, 1) if wanted.shape[1:] == (1,) else wanted
    np.testing.assert_array_equal(values, wanted)


def xgboost_models():
    xgb = pytest.importorskip("xgboost")
    quantiles = {"objective": "reg:quantileerror", "quantile_alpha": [0.1, 0.5, 0.9]}
    return {
        "classes": xgb.XGBClassifier(**SMALL).fit(FRAME, THREE),
        "labels": xgb.XGBClassifier(**SMALL).fit(FRAME, LABELS),
        "value": xgb.XGBRegressor(**SMALL).fit(FRAME, VALUE),
        "values": xgb.XGBRegressor(**SMALL).fit(FRAME, VALUES),
        "quantiles": xgb.XGBRegressor(**quantiles, **SMALL).fit(FRAME, VALUE),
        "ranks": xgb.XGBRanker(**SMALL).fit(FRAME, TWO, qid=GROUPS),
        "forest": xgb.XGBRFClassifier(**SMALL).fit(FRAME, TWO),
    }


def lightgbm_models():
    lgb = pytest.importorskip("lightgbm")
    return {
        "classes": lgb.LGBMClassifier(**LIGHT).fit(FRAME, THREE),
        "value": lgb.LGBMRegressor(**LIGHT).fit(FRAME, VALUE),
        "ranks": lgb.LGBMRanker(**LIGHT).fit(FRAME, TWO, group=[10] * 6),
    }


def catboost_models():
    cat = pytest.importorskip("catboost")
    several = {"loss_function": "MultiRMSE"}
    multilabel = {"loss_function": "MultiLogloss"}
    uncertain = {"loss_function": "RMSEWithUncertainty"}
    return {
        "classes": cat.CatBoostClassifier(**CAT).fit(FRAME, THREE),
        "bools": cat.CatBoostClassifier(**CAT).fit(FRAME, TWO.astype(bool)),
        "labels": cat.CatBoostClassifier(**multilabel, **CAT).fit(FRAME, LABELS),
        "value": cat.CatBoostRegressor(**CAT).fit(FRAME, VALUE),
        "values": cat.CatBoostRegressor(**several, **CAT).fit(FRAME, VALUES),
        "variance": cat.CatBoostRegressor(**uncertain, **CAT).fit(FRAME, VALUE),
        "ranks": cat.CatBoostRanker(**CAT).fit(FRAME, TWO, group_id=GROUPS),
        "native": cat.CatBoost(CAT).fit(FRAME, VALUE),
        "native classes": cat.CatBoost({"loss_function": "MultiClass", **CAT}).fit(
            FRAME, THREE
        ),
    }


METHODS = ("predict", "predict_proba", "predict_log_proba", "apply")


@pytest.mark.parametrize("build", [xgboost_models, lightgbm_models, catboost_models])
def test_every_model_is_promised_and_reads_its_own_columns(build):
    for model in build().values():
        for method in filter(lambda name: hasattr(model, name), METHODS):
            check(model, getattr(model, method)(FRAME), method=method)


def test_text_labels_are_strings():
    lgb, cat = pytest.importorskip("lightgbm"), pytest.importorskip("catboost")
    light = lgb.LGBMClassifier(**LIGHT).fit(FRAME, TEXTS)
    for model in (light, cat.CatBoostClassifier(**CAT).fit(FRAME, TEXTS)):
        found = predicted(model)["prediction"]
        assert found.dtype == "string[pyarrow]"
        assert found.tolist() == model.predict(FRAME).ravel().tolist()


@pytest.mark.parametrize(
    "objective",
    [
        {"objective": "multi:softprob", "num_class": 3},
        {"objective": "multi:softmax", "num_class": 3},
        {"objective": "binary:logistic"},
    ],
    ids=["probabilities", "labels", "probability"],
)
def test_a_native_booster_of_xgboost_reads_frames(objective):
    xgb = pytest.importorskip("xgboost")
    target = THREE if "num_class" in objective else TWO
    booster = xgb.train(objective, xgb.DMatrix(FRAME, target), 3)
    check(booster, booster.predict(xgb.DMatrix(FRAME)))


@pytest.mark.parametrize(
    "objective", [{"objective": "multiclass", "num_class": 3}, {"objective": "binary"}]
)
def test_a_native_booster_of_lightgbm_reads_its_own_columns(objective):
    lgb = pytest.importorskip("lightgbm")
    data = lgb.Dataset(FRAME, THREE if "num_class" in objective else TWO)
    booster = lgb.train({"verbose": -1, "min_data_in_leaf": 2, **objective}, data, 3)
    check(booster, booster.predict(FRAME))
    check(booster, booster.predict(FRAME), columns=["d", "c", "b", "a"])


def test_names_that_a_library_changed_are_found_in_the_frame():
    lgb = pytest.importorskip("lightgbm")
    frame = FRAME.rename(columns={"a": "a a"})
    model = lgb.LGBMRegressor(**LIGHT).fit(frame, VALUE)
    assert feature_names(model, frame.columns) == ["a a", "b", "c", "d"]
    check(model, model.predict(frame), frame=frame)


def test_numbers_for_names_are_no_names():
    lgb, cat = pytest.importorskip("lightgbm"), pytest.importorskip("catboost")
    for model in (lgb.LGBMRegressor(**LIGHT), cat.CatBoostRegressor(**CAT)):
        model.fit(FRAME.to_numpy(), VALUE)
        assert feature_names(model, FRAME.columns) is None


def test_categories_stay_categories():
    xgb = pytest.importorskip("xgboost")
    frame = FRAME.assign(c=pd.Categorical(TEXTS))
    data = xgb.DMatrix(frame, VALUE, enable_categorical=True)
    booster = xgb.train({"tree_method": "hist", "max_depth": 2}, data, 3)
    ddf = dd.from_pandas(frame, npartitions=2)
    found = ddf.infer.predict(booster, keep=False).compute(scheduler="sync")
    np.testing.assert_array_equal(found["prediction"], booster.predict(data))


def test_a_keyword_that_changes_the_output_is_named():
    cat = pytest.importorskip("catboost")
    model = cat.CatBoostClassifier(**CAT).fit(FRAME, TWO)
    kwargs = {"prediction_type": "Probability"}
    with pytest.raises(OutputError, match="prediction_type= of call_kwargs"):
        predicted(model, call_kwargs=kwargs)


def test_what_is_fitted_is_an_estimator_whatever_it_predicts_with():
    neighbors = pytest.importorskip("sklearn.neighbors")
    density = neighbors.KernelDensity().fit(FRAME)
    assert recognise(density).spec.kind == "estimator"
    found = predicted(density, method="score_samples")["prediction"]
    np.testing.assert_allclose(found, density.score_samples(FRAME))
    nearest = neighbors.NearestNeighbors(n_neighbors=2).fit(FRAME)
    found = predicted(nearest, method="kneighbors", output=["far", "which"])
    wanted = nearest.kneighbors(FRAME)[1]
    np.testing.assert_array_equal(np.array(found["which"].tolist()), wanted)


def test_a_method_that_is_named_makes_an_object_an_estimator():
    class Doubler:
        def twice(self, frame):
            return frame["a"] * 2

    found = predicted(Doubler(), method="twice", meta="float64")["prediction"]
    np.testing.assert_array_equal(found, FRAME["a"] * 2)
