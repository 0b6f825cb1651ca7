"""Transformers that pass values on promise, and give, the dtypes that they got."""

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest

pytest.importorskip("sklearn")

from sklearn.compose import ColumnTransformer, make_column_transformer
from sklearn.feature_selection import SelectKBest, VarianceThreshold
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

RANDOM = np.random.default_rng(0)
#: Integers that floats do not hold.
LARGE = RANDOM.integers(2**60, 2**61, 20) | 1
FRAME = pd.DataFrame(
    {
        "x": RANDOM.random(20),
        "large": LARGE,
        "flag": LARGE % 3 == 0,
        "text": RANDOM.choice(["ham", "spam"], 20).astype(object),
    }
)
SCALED = ("scaled", StandardScaler(), ["x"])
REST = ("rest", "passthrough", ["text", "large", "flag"])


def transformed(estimator, frame=FRAME):
    ddf = dd.from_pandas(frame, npartitions=3)
    lazy = ddf.infer.predict(estimator, method="transform", keep=False, batch_size=4)
    found = lazy.compute(scheduler="sync")
    assert (found.dtypes == lazy.dtypes).all()
    return found


@pytest.mark.parametrize(
    "estimator",
    [
        make_column_transformer(("passthrough", ["large"])),
        make_pipeline(
            make_column_transformer(("passthrough", ["large", "flag"])),
            VarianceThreshold(),
        ),
        make_column_transformer((VarianceThreshold(), ["large"])),
    ],
    ids=["passed", "pipeline", "selected"],
)
def test_large_integers_stay_integers(estimator):
    wanted = estimator.fit(FRAME).transform(FRAME)
    found = np.array(transformed(estimator)["prediction"].tolist())
    assert found.dtype == "int64"
    assert found.reshape(len(FRAME), -1).tolist() == np.asarray(wanted).tolist()


def test_what_is_picked_from_one_array_has_its_dtype():
    frame = FRAME[["x", "large"]]
    estimator = SelectKBest(k=1).fit(frame, LARGE % 2**59 > 2**58)
    assert transformed(estimator, frame)["prediction"].dtype == "float64"


def test_frames_have_the_dtypes_of_their_columns():
    estimator = ColumnTransformer([SCALED, REST]).set_output(transform="pandas")
    wanted = estimator.fit(FRAME).transform(FRAME)
    found = transformed(estimator)
    kinds = ["float64", "string", "int64", "bool"]
    assert found.dtypes.astype(str).tolist() == kinds
    assert found.to_numpy().tolist() == wanted.to_numpy().tolist()


@pytest.mark.parametrize(
    "estimator",
    [
        ColumnTransformer([SCALED, REST]),
        make_column_transformer((SimpleImputer(strategy="most_frequent"), ["text"])),
    ],
    ids=["passed", "filled"],
)
def test_text_beside_numbers_is_objects(estimator):
    wanted = estimator.fit(FRAME).transform(FRAME)
    found = transformed(estimator)["prediction"]
    assert found.dtype == object
    assert np.array(found.tolist(), object).reshape(wanted.shape).tolist() == (
        wanted.tolist()
    )


def test_what_changes_nothing_gives_its_input():
    found = transformed(FunctionTransformer().fit(FRAME))
    assert found.dtypes.astype(str).tolist() == ["float64", "int64", "bool", "string"]
    assert found["large"].tolist() == LARGE.tolist()


def test_new_values_are_floats_or_what_was_asked_for():
    encode = OneHotEncoder(dtype=bool, sparse_output=False)
    estimator = make_column_transformer((encode, ["text"])).fit(FRAME)
    found = np.stack(transformed(estimator)["prediction"])
    assert found.dtype == bool
    assert found.tolist() == estimator.transform(FRAME).tolist()
