"""Estimators get what they were fitted on: API section 3, ZO-3."""

from __future__ import annotations

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import dask_infer  # noqa: F401
from dask_infer.errors import InputError

pytest.importorskip("sklearn")

from sklearn.base import BaseEstimator
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

COLORS = np.random.default_rng(0).choice(["red", "green", "blue", None], 120)
PDF = pd.DataFrame({"color": COLORS, "i": range(120)})
PDF["txt"] = [("good film", "bad film", "so so")[i % 3] for i in PDF.i]
BLUE = (PDF.color == "blue").astype(int)
#: As plain pandas before version 3 has it.
NONE = PDF.assign(color=PDF.color.astype(object).where(PDF.color.notna(), None))

PIPELINES = {
    "one-hot": (OneHotEncoder(), LogisticRegression()),
    "imputer": (
        SimpleImputer(strategy="most_frequent"),
        OneHotEncoder(),
        LogisticRegression(),
    ),
    "imputer of None": (
        SimpleImputer(strategy="most_frequent", missing_values=None),
        OneHotEncoder(),
        LogisticRegression(),
    ),
}


class Recorder(BaseEstimator):
    """Says what it was given; fitted on nothing."""

    def predict(self, given):
        kinds = given.dtypes if given.ndim == 2 else [given.dtype]
        types = f"{type(given).__name__} {', '.join(map(str, kinds))}"
        return np.array([types] * len(given), dtype=object)


def recorded(ddf, columns, **options):
    pred = ddf.infer.predict(Recorder(), columns=columns, meta="object", **options)
    return set(pred.prediction.compute())


#: Partitions and most rows of a batch: rows alone in a batch, and in a partition.
CUTS = [(1, "auto"), (1, 16), (7, 1), (120, "auto")]


@pytest.mark.parametrize("convert", [True, False])
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("frame", [PDF, NONE], ids=["NaN", "None"])
@pytest.mark.parametrize("steps", PIPELINES)
def test_missing_text_is_what_the_pipeline_was_fitted_on(steps, frame, cut, convert):
    if steps == "imputer of None" and frame is PDF:
        pytest.skip("scikit-learn refuses NaN there")
    fitted = make_pipeline(*PIPELINES[steps]).fit(frame[["color"]], BLUE)
    expected = fitted.predict_proba(frame[["color"]])
    with dask.config.set({"dataframe.convert-string": convert}):
        pred = dd.from_pandas(frame, npartitions=cut[0]).infer.predict(
            fitted,
            columns=["color"],
            method="predict_proba",
            output=["other", "blue"],
            batch_size=cut[1],
        )
        np.testing.assert_allclose(pred.blue.compute(), expected[:, 1])


@pytest.mark.parametrize("on_error", ["raise", "null"])
@pytest.mark.parametrize("cut", CUTS)
def test_a_text_pipeline_reads_the_texts(cut, on_error):
    fitted = make_pipeline(TfidfVectorizer(), LogisticRegression())
    fitted.fit(PDF.txt, PDF.i % 3)
    ddf = dd.from_pandas(PDF, npartitions=cut[0])
    options = {"batch_size": cut[1], "on_error": on_error}
    named = ddf.infer.predict(fitted, columns="txt", **options).prediction
    series = ddf.txt.infer.predict(fitted, **options)
    for pred in (named, series):
        assert pred.compute().tolist() == (PDF.i % 3).tolist()


def test_a_text_pipeline_is_not_given_column_names():
    fitted = make_pipeline(TfidfVectorizer(), LogisticRegression())
    ddf = dd.from_pandas(PDF, npartitions=1)
    fitted.fit(PDF.txt, PDF.i % 3)
    with pytest.raises(InputError, match=r'one text a row.*pass columns="txt"'):
        ddf.infer.predict(fitted, columns=["txt"])
    with pytest.raises(InputError, match="one text a row"):
        ddf.infer.predict(fitted)


def test_a_table_of_one_column_stays_a_table():
    fitted = LinearRegression().fit(PDF[["i"]], PDF.i * 2)
    ddf = dd.from_pandas(PDF, npartitions=3)
    pred = ddf.i.infer.predict(fitted).compute()
    np.testing.assert_allclose(pred, PDF.i * 2, atol=1e-9)


def test_dtypes_are_those_of_plain_pandas():
    frame = pd.DataFrame(
        {
            "int": pd.array([1, None], "Int64"),
            "float": pd.array([1.0, None], "Float32"),
            "arrow": pd.array([1, None], pd.ArrowDtype(pa.int8())),
            "time": pd.array([0, None], pd.ArrowDtype(pa.timestamp("ns"))),
            "text": pd.array(["a", None], pd.ArrowDtype(pa.string())),
            "class": pd.Categorical(["a", None]),
        }
    )
    with dask.config.set({"dataframe.convert-string": False}):
        ddf = dd.from_pandas(frame, npartitions=2)
    kinds = "float64, float32, float64, datetime64[ns], object, category"
    assert recorded(ddf, list(frame)) == {f"DataFrame {kinds}"}
    assert recorded(ddf, "text") == {"Series object"}
    assert recorded(ddf, ("int",)) == {"Series float64"}


def test_what_preprocess_returns_stays_what_it_is():
    ddf = dd.from_pandas(PDF, npartitions=2)

    def series(frame):
        return frame.txt.astype("string")

    def frame(frame):
        return frame.astype({"i": "Int64"})

    assert recorded(ddf, "txt", preprocess=series) == {"Series string"}
    assert recorded(ddf, ["i"], preprocess=frame) == {"DataFrame Int64"}
    assert recorded(ddf, "txt", preprocess=lambda f: f) == {"DataFrame object"}


def test_an_estimator_of_texts_reads_the_column_that_preprocess_returns():
    fitted = make_pipeline(TfidfVectorizer(lowercase=False), LogisticRegression())
    fitted.fit(PDF.txt, PDF.i % 3)
    ddf = dd.from_pandas(PDF.assign(txt=PDF.txt.str.upper()), npartitions=3)
    for lower in (
        lambda frame: frame.txt.str.lower(),
        lambda frame: frame.assign(txt=frame.txt.str.lower()),
    ):
        pred = ddf.txt.infer.predict(fitted, preprocess=lower)
        assert pred.compute().tolist() == (PDF.i % 3).tolist()


def test_estimators_on_a_cluster_read_what_they_were_fitted_on(client):
    encoded = make_pipeline(OneHotEncoder(), LogisticRegression())
    encoded.fit(NONE[["color"]], BLUE)
    texts = make_pipeline(TfidfVectorizer(), LogisticRegression())
    texts.fit(PDF.txt, PDF.i % 3)
    ddf = dd.from_pandas(NONE, npartitions=7)
    color = ddf.infer.predict(encoded, columns=["color"]).prediction.compute()
    third = ddf.txt.infer.predict(texts, batch_size=4).compute()
    assert color.tolist() == encoded.predict(NONE[["color"]]).tolist()
    assert third.tolist() == (PDF.i % 3).tolist()


def test_an_estimator_fitted_on_objects_gets_an_array_of_them():
    table = PDF[["txt", "i"]].assign(i=PDF.i % 4).astype({"txt": object})
    fitted = make_pipeline(OneHotEncoder(), LogisticRegression())
    fitted.fit(table.to_numpy(), BLUE)
    pred = dd.from_pandas(table, npartitions=3).infer.predict(fitted)
    assert (
        pred.prediction.compute().tolist() == fitted.predict(table.to_numpy()).tolist()
    )


@pytest.mark.parametrize("columns", ["vector", ["vector"]])
def test_vectors_reach_an_estimator_as_the_array_that_it_was_fitted_on(columns):
    array = np.random.default_rng(0).normal(size=(120, 4))
    fitted = LogisticRegression().fit(array, BLUE)
    ddf = dd.from_pandas(pd.DataFrame(array, columns=list("abcd")), npartitions=2)
    ddf = ddf.infer.predict(
        lambda x: x, output="vector", keep=False, meta="tensor[float64, (4,)]"
    )
    with pytest.raises(InputError, match="holds lists, and the estimator"):
        ddf.infer.predict(fitted, columns=columns)
    pred = ddf.infer.predict(
        fitted,
        columns=columns,
        preprocess=lambda frame: frame["vector"].infer.to_numpy(),
    )
    assert pred.prediction.compute().tolist() == fitted.predict(array).tolist()
