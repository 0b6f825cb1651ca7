"""Several models on the same rows: API 5, in this process and on a cluster."""

from __future__ import annotations

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch
from dask.dataframe.dask_expr.io.parquet import ReadParquet

import dask_infer
from dask_infer import Ensemble, InputError, OutputError, PartitionError, Towers
from dask_infer.batch.tensor.tensor_dtype import TensorDtype


@pytest.fixture(autouse=True)
def in_this_process(request):
    scheduler = None if "client" in request.fixturenames else "sync"
    with dask.config.set(scheduler=scheduler):
        yield


class Head(torch.nn.Module):
    """Reads an argument a tower."""

    def forward(self, x, y):
        return torch.cat([x * 2, y[:, None]], 1)


def linear(inputs, outputs, seed=0):
    torch.manual_seed(seed)
    return torch.nn.Linear(inputs, outputs)


def given(frame, columns):
    return torch.tensor(frame[columns].to_numpy("float32", copy=True))


def run(model, *arguments):
    with torch.inference_mode():
        return model(*arguments).numpy()


@pytest.fixture
def towers():
    return {"x": (linear(2, 3), ["a", "b"]), "y": (linear(1, 1, 1), ["b"])}


@pytest.fixture
def wanted(frame, towers):
    """What the two towers return."""
    x, y = (run(model, given(frame, cols)) for model, cols in towers.values())
    return x, y[:, 0]


def test_columns_are_named_by_tower(ddf, frame, towers, wanted):
    pred = ddf.infer.predict(Towers(towers), keep=["id"])
    assert list(pred.columns) == ["id", "x", "y"]
    found = pred.compute()
    np.testing.assert_allclose(found["x"].infer.to_numpy(), wanted[0], atol=1e-6)
    np.testing.assert_allclose(found["y"], wanted[1], atol=1e-6)
    assert found.index.equals(frame.index)
    pd.testing.assert_series_equal(found["id"], frame["id"])


def test_columns_on_a_cluster_are_the_same(client, ddf, towers):
    pred = ddf.infer.predict(Towers(towers, head=Head()), on_error="quarantine")
    with dask.config.set(scheduler="sync"):
        here = pred.compute()
    pd.testing.assert_frame_equal(pred.compute(), here)


def test_dtypes_are_those_promised(ddf, towers):
    for model in (Towers(towers), Towers(towers, head=Head())):
        for on_error in ("raise", "null", "quarantine"):
            pred = ddf.infer.predict(model, on_error=on_error)
            assert pred.compute().dtypes.equals(pred.dtypes)


class Fields(torch.nn.Module):
    def forward(self, x):
        return {"sum": x.sum(1), "twice": x * 2}


def test_fields_are_named_by_tower_and_field(ddf):
    both = Towers({"one": (Fields(), ["a", "b"]), "two": (torch.nn.ReLU(), "a")})
    pred = ddf.infer.predict(both, keep=False)
    assert list(pred.columns) == ["one_sum", "one_twice", "two"]
    assert list(pred.compute().columns) == list(pred.columns)


def test_output_renames_and_picks(ddf, towers, wanted):
    pred = ddf.infer.predict(Towers(towers), output={"y": "score"}, keep=False)
    assert list(pred.columns) == ["score"]
    np.testing.assert_allclose(pred.compute()["score"], wanted[1], atol=1e-6)
    both = ddf.infer.predict(Towers(towers), output=["one", "two"], keep=False)
    assert list(both.compute().columns) == ["one", "two"]


def test_a_head_reads_an_argument_a_tower(ddf, towers, wanted):
    names = ["a1", "a2", "a3", "y1"]
    model = Towers(towers, head=Head())
    found = ddf.infer.predict(model, output=names, keep=False).compute()
    expected = np.column_stack([wanted[0] * 2, wanted[1]])
    np.testing.assert_allclose(found[names], expected, atol=1e-6)


def test_a_head_has_columns_and_options_of_its_own(ddf, wanted, towers):
    head = (lambda x: x.sum(1), "x", {"meta": "float32", "batch_size": 7})
    found = ddf.infer.predict(Towers(towers, head=head), output="s").compute()
    np.testing.assert_allclose(found["s"], wanted[0].sum(1), atol=1e-5)


def test_scalar_outputs_of_a_tower_are_one_argument(ddf, wanted, towers):
    model, columns = towers["x"]
    three = (model, columns, {"output": ["p", "q", "r"]})
    both = Towers({"x": three, "y": towers["y"]}, head=Head())
    found = ddf.infer.predict(both, keep=False).compute()["prediction"]
    np.testing.assert_allclose(found.infer.to_numpy()[:, :3], wanted[0] * 2, atol=1e-6)


def test_an_estimator_as_head_reads_all_as_columns(ddf, frame):
    linear_model = pytest.importorskip("sklearn.linear_model")
    ensemble = pytest.importorskip("sklearn.ensemble")
    tree = pytest.importorskip("sklearn.tree")
    names = ["a", "b"]
    labels = np.where(frame["a"] > 0.5, "high", np.where(frame["b"] > 0, "mid", "low"))
    stacking = ensemble.StackingClassifier(
        [
            ("one", linear_model.LogisticRegression()),
            ("two", tree.DecisionTreeClassifier(max_depth=2)),
        ],
        final_estimator=linear_model.LogisticRegression(),
        cv=3,
    ).fit(frame[names], labels)  # fmt: skip
    probabilities = {"method": "predict_proba"}
    towers = {
        name: (model, names, probabilities)
        for name, model in stacking.named_estimators_.items()
        if name != "drop"
    }
    model = Towers(towers, head=stacking.final_estimator_)
    found = ddf.infer.predict(model).compute()["prediction"]
    codes = np.searchsorted(stacking.classes_, stacking.predict(frame[names]))
    np.testing.assert_array_equal(found, codes)


def test_towers_have_their_own_batch_sizes(ddf):
    def rows(x):
        return np.full(len(x), len(x))

    options = {"meta": "int64", "batch_size": 4}
    both = Towers({"few": (rows, "a", options), "most": (rows, "a", {"meta": "int64"})})
    found = ddf.infer.predict(both, batch_size=9, keep=False).compute()
    assert found["few"].max() == 4
    assert found["most"].max() == 9


def test_the_other_options_are_a_tower_s_own(ddf, frame):
    both = Towers(
        {
            "half": (linear(2, 1), ["a", "b"], {"dtype": "bfloat16"}),
            "text": (
                lambda x, by: [len(each) * by for each in x],
                "text",
                {"meta": "int64", "call_kwargs": {"by": 2}, "timeout": 60},
            ),
            "shifted": (
                torch.nn.Identity(),
                "a",
                {
                    "preprocess": lambda rows: rows.assign(a=rows["a"] + 1),
                    "postprocess": lambda output, rows: output * 2,
                },
            ),
        }
    )
    found = ddf.infer.predict(both, keep=False).compute()
    np.testing.assert_array_equal(found["text"], frame["text"].str.len() * 2)
    np.testing.assert_allclose(found["shifted"], (frame["a"] + 1) * 2, atol=1e-6)


def test_a_tower_of_texts(ddf, frame, minilm):
    model = Towers({"text": (str(minilm), "text"), "table": (linear(2, 4), ["a", "b"])})
    found = ddf.infer.predict(model, keep=False).compute()
    alone = ddf["text"].infer.predict(str(minilm)).compute()
    name = next(name for name in found.columns if name.startswith("text"))
    np.testing.assert_allclose(
        found[name].infer.to_numpy(), alone.infer.to_numpy(), atol=1e-5
    )
    assert found["table"].infer.to_numpy().shape == (len(frame), 4)


# --- what is read and run ------------------------------------------------------------


def fails(x):
    raise RuntimeError("it ran")


def test_a_tower_that_is_not_read_does_not_run(parquet, towers):
    ddf = dd.read_parquet(parquet)
    both = Towers({**towers, "z": (fails, "id", {"meta": "float32"})})
    pred = ddf.infer.predict(both)
    query = pred[["x", "text"]]
    assert len(query.compute()) == 100
    (read,) = query.expr.simplify().find_operations(ReadParquet)
    assert set(read.columns) == {"a", "b", "text"}
    assert len(pred["y"].compute()) == 100
    assert len(pred) == 100  # nor does any
    with pytest.raises(PartitionError, match="it ran"):
        pred["z"].compute()


def test_two_columns_of_different_towers_are_both_run(ddf, wanted, towers):
    pred = ddf.infer.predict(Towers(towers))
    total = (pred["y"] + pred["y"].max()).compute()
    np.testing.assert_allclose(total, wanted[1] + wanted[1].max(), atol=1e-5)


def test_head_and_filters_run_only_their_rows(ddf, towers):
    def count(x):
        assert len(x) <= 3
        return x

    pred = ddf.infer.predict(Towers({**towers, "z": (count, "a", {"meta": "float32"})}))
    assert len(pred.head(3)) == 3
    assert len(pred[pred["id"] < 3].compute()) == 3


def test_without_row_wise_batches_stay_as_they_are(ddf):
    options = {"meta": "int64", "batch_size": 10}
    rows = Towers({"n": (lambda x: np.full(len(x), len(x)), "a", options)})
    pred = ddf.infer.predict(rows, row_wise=False, keep=["id"])
    assert pred[pred["id"] < 3].compute()["n"].tolist() == [10] * 3


def test_a_frame_without_rows(ddf, towers):
    pred = ddf.infer.predict(Towers(towers, head=Head()), on_error="quarantine")
    none = pred[pred["id"] < 0].compute()
    assert not len(none)
    assert none.dtypes.equals(pred.dtypes)
    odd = ddf.partitions[0].map_partitions(lambda part: part.iloc[:0])
    both = dd.concat([odd, ddf]).infer.predict(Towers(towers, head=Head()))
    assert len(both.compute()) == 100


# --- rows that fail ------------------------------------------------------------------


def refuses_row_7(ids):
    if (np.asarray(ids) == 7).any():
        raise ValueError("seven")
    return np.asarray(ids) * 10


SEVEN = (refuses_row_7, "id", {"meta": "int64"})


def test_an_error_names_tower_cause_and_row(ddf, towers):
    pred = ddf.infer.predict(Towers({**towers, "z": SEVEN}))
    with pytest.raises(
        PartitionError, match=r'^tower "z": model "refuses_row_7" f'
    ) as e:
        pred.compute()
    assert isinstance(e.value.cause, ValueError)
    assert e.value.partition == 0


def test_an_error_on_a_cluster_names_tower_and_cause(client, ddf, towers):
    pred = ddf.infer.predict(Towers({**towers, "z": SEVEN}))
    with pytest.raises(PartitionError, match=r'^tower "z": .*ValueError: seven') as e:
        pred.compute()
    assert isinstance(e.value.cause, ValueError)


def test_without_a_head_other_towers_keep_their_outputs(ddf, frame, towers):
    pred = ddf.infer.predict(Towers({**towers, "z": SEVEN}), on_error="null")
    assert pred["z"].dtype == "Int64"
    found = pred.compute()
    assert found["z"].isna().sum() == 1
    assert found.loc[14, ["x", "y"]].notna().all()  # row 7 of an index in steps of 2
    rest = frame["id"] != 7
    np.testing.assert_array_equal(found["z"][rest], frame["id"][rest] * 10)


def test_quarantine_names_the_tower(ddf, towers):
    both = Towers({**towers, "z": SEVEN, "w": SEVEN})
    found = ddf.infer.predict(both, on_error="quarantine").compute()
    (error,) = found["infer_error"].dropna()
    text = "forward: ValueError: seven"
    assert error == f'tower "z": {text}; tower "w": {text}'


@pytest.mark.parametrize("on_error", ["null", "quarantine"])
def test_rows_that_fail_in_a_tower_are_missing_in_the_head(ddf, frame, on_error):
    def head(x, z):
        assert not (np.asarray(z) == 70).any()
        assert np.asarray(z).dtype == "int64"
        return np.asarray(z) + 1

    model = Towers(
        {"x": (torch.nn.Identity(), "a"), "z": SEVEN},
        head=(head, None, {"meta": "int64"}),
    )
    pred = ddf.infer.predict(model, on_error=on_error)
    found = pred.compute()
    assert found.dtypes.equals(pred.dtypes)
    rest = frame["id"] != 7
    assert found["prediction"].isna().sum() == 1
    np.testing.assert_array_equal(found["prediction"][rest], frame["id"][rest] * 10 + 1)
    if on_error == "quarantine":
        (error,) = found["infer_error"].dropna()
        assert error == 'tower "z": forward: ValueError: seven'


def test_rows_that_fail_in_the_head_are_its_own(ddf, frame):
    model = Towers(
        {"z": SEVEN, "i": (lambda x: x, "id", {"meta": "int64"})},
        head=(lambda z, i: refuses_9(i), None, {"meta": "int64"}),
    )
    found = ddf.infer.predict(model, on_error="quarantine").compute()
    errors = found["infer_error"].dropna()
    assert errors.tolist() == [
        'tower "z": forward: ValueError: seven',
        "head: forward: ValueError: nine",
    ]
    assert found["prediction"].isna().sum() == 2


def refuses_9(ids):
    if (np.asarray(ids) == 9).any():
        raise ValueError("nine")
    return np.asarray(ids)


def test_a_partition_whose_rows_all_fail(ddf):
    def refuses(ids):
        if (np.asarray(ids) < 25).any():
            raise ValueError("below 25")
        return np.asarray(ids).astype(str).tolist()

    towers = {"z": (refuses, "id", {"meta": "string"})}
    for head in (None, (lambda z: z, None, {"meta": "string"})):
        with dask.config.set({"infer.errors.max-fraction": 1}):
            pred = ddf.infer.predict(Towers(towers, head=head), on_error="null")
            assert pred.compute().iloc[:, -1].isna().sum() == 25


def test_structure_raises_under_every_on_error(ddf):
    model = Towers({"z": (lambda x: x[:1], "a", {"meta": "float32"})})
    for on_error in ("raise", "null", "quarantine"):
        pred = ddf.infer.predict(model, on_error=on_error)
        with pytest.raises(OutputError, match=r'^tower "z": '):
            pred.compute()


# --- ensembles -----------------------------------------------------------------------


def test_the_mean_is_in_float32_at_least(ddf, frame):
    models = [linear(2, 3, seed) for seed in range(5)]
    pred = ddf.infer.predict(Ensemble(models), columns=["a", "b"], keep=False)
    found = pred.compute()["prediction"]
    outputs = [run(model, given(frame, ["a", "b"])) for model in models]
    np.testing.assert_allclose(found.infer.to_numpy(), np.mean(outputs, 0), atol=1e-6)
    half = ddf.infer.predict(Ensemble(models), columns=["a", "b"], dtype="float16")
    assert half.compute()["prediction"].infer.to_numpy().dtype == "float32"


@pytest.fixture
def voters(frame):
    linear_model = pytest.importorskip("sklearn.linear_model")
    bayes = pytest.importorskip("sklearn.naive_bayes")
    tree = pytest.importorskip("sklearn.tree")
    return [
        linear_model.LogisticRegression(),
        bayes.GaussianNB(),
        tree.DecisionTreeClassifier(max_depth=1),
        tree.DecisionTreeClassifier(max_depth=2),
    ]


@pytest.mark.parametrize(
    "labels", [["low", "mid", "high"], [30, 10, 20], [True, False]]
)
def test_votes_are_those_of_scikit_learn(ddf, frame, voters, labels):
    ensemble = pytest.importorskip("sklearn.ensemble")
    names, random = ["a", "b"], np.random.default_rng(3)
    # Labels with much noise: four models often tie.
    noisy = frame["a"] + random.normal(size=len(frame)) * 2
    places = pd.qcut(noisy, len(labels), labels=False)
    truth = np.array(labels)[places]
    named = [(str(place), model) for place, model in enumerate(voters)]
    hard = ensemble.VotingClassifier(named).fit(frame[names], truth)
    fitted = [model.fit(frame[names], truth) for model in voters]
    found = ddf.infer.predict(Ensemble(fitted, combine="vote"), columns=names).compute()
    np.testing.assert_array_equal(found["prediction"], hard.predict(frame[names]))
    votes = np.stack([model.predict(frame[names]) for model in fitted])
    ties = [len(set(np.unique(v, return_counts=True)[1])) == 1 for v in votes.T]
    assert any(tie and len(set(v)) == 2 for tie, v in zip(ties, votes.T, strict=True))


def test_soft_votes_and_regressions_are_those_of_scikit_learn(ddf, frame, voters):
    ensemble = pytest.importorskip("sklearn.ensemble")
    tree = pytest.importorskip("sklearn.tree")
    names, truth = ["a", "b"], frame["a"] > 0
    named = [(str(place), model) for place, model in enumerate(voters)]
    soft = ensemble.VotingClassifier(named, voting="soft").fit(frame[names], truth)
    pred = ddf.infer.predict(
        Ensemble(soft.estimators_), columns=names,
        method="predict_proba", output=["no", "yes"], keep=False,
    )  # fmt: skip
    np.testing.assert_array_equal(pred.compute(), soft.predict_proba(frame[names]))
    trees = [(str(n), tree.DecisionTreeRegressor(max_depth=n)) for n in (1, 2, 3)]
    voting = ensemble.VotingRegressor(trees).fit(frame[names], frame["b"])
    mean = ddf.infer.predict(Ensemble(voting.estimators_), columns=names).compute()
    np.testing.assert_allclose(
        mean["prediction"], voting.predict(frame[names]), atol=1e-12
    )


@pytest.mark.parametrize("combine", ["mean", "stack"])
def test_probabilities_of_other_classes_are_not_combined(ddf, frame, combine):
    """They have one shape, and were combined by place."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    first, second = np.array(["no", "yes"]), np.array(["a", "no"])
    models = [
        linear_model.LogisticRegression().fit(
            frame[["a", "b"]], labels[frame["id"] % 2]
        )
        for labels in (first, second, first)
    ]
    options = {"columns": ["a", "b"], "method": "predict_proba", "keep": False}
    message = r"other classes, \['no', 'yes'\] and \['a', 'no'\]"
    with pytest.raises(OutputError, match=message):
        ddf.infer.predict(Ensemble(models, combine), **options)
    found = ddf.infer.predict(Ensemble(models[::2], combine), **options).compute()
    assert found["prediction"].iloc[0].shape[-1] == 2


def test_meta_of_an_ensemble_is_that_of_the_whole(ddf, frame):
    def values(x):
        return {"low": x[:, 0], "high": x[:, 1]}

    model = Ensemble([values, values])
    meta = {"id": "int64", "z": "float32", "infer_error": "string"}
    pred = ddf.infer.predict(
        model, columns=["a", "b"], output={"high": "z"}, meta=meta, keep=["id"],
        on_error="quarantine",
    )  # fmt: skip
    assert list(pred.columns) == ["id", "z", "infer_error"]
    np.testing.assert_array_equal(pred["z"].compute(), frame["b"].astype("float32"))
    with pytest.raises(OutputError, match="is of float64, and meta= says int64; pass"):
        ddf.infer.predict(Ensemble([abs, abs]), columns="id", meta="int64")
    towers = Towers({"t": (abs, "id")})
    meta = {"t": "int64", "infer_error": "string"}
    pred = ddf.infer.predict(towers, meta=meta, on_error="quarantine", keep=False)
    assert list(pred.columns) == ["t", "infer_error"]


def test_stacked_outputs_have_an_axis_of_models(ddf, frame):
    models = [linear(2, 3, seed) for seed in range(4)]
    pred = ddf.infer.predict(Ensemble(models, combine="stack"), columns=["a", "b"])
    found = pred.compute()["prediction"].infer.to_numpy()
    outputs = [run(model, given(frame, ["a", "b"])) for model in models]
    np.testing.assert_allclose(found, np.stack(outputs, 1), atol=1e-6)
    scalars = Ensemble([linear(2, 1, seed) for seed in range(2)], combine="stack")
    pred = ddf.infer.predict(scalars, columns=["a", "b"], output=["one", "two"])
    assert pred.compute()["two"].dtype == "float32"


def test_meta_of_a_stack_names_and_shapes_the_whole(ddf, frame):
    both = Ensemble([lambda x: x, lambda x: x * 2], combine="stack")
    meta = {"id": "int64", "s": TensorDtype("float32", (2, 2))}
    options = {"columns": ["a", "b"], "keep": ["id"]}
    pred = ddf.infer.predict(both, meta=meta, **options)
    assert list(pred.columns) == ["id", "s"]
    rows = frame[["a", "b"]].to_numpy("float32")
    found = pred.compute()["s"].infer.to_numpy()
    np.testing.assert_array_equal(found, np.stack([rows, rows * 2], 1))
    renamed = ddf.infer.predict(both, meta={"q": meta["s"]}, output="q", **options)
    assert renamed["q"].dtype == meta["s"]
    for wrong in ("float32", TensorDtype("float32", (3, 2))):
        with pytest.raises(OutputError, match=r"pass meta='tensor\[float32, \(2,"):
            ddf.infer.predict(both, meta={"s": wrong}, **options)


def test_a_function_combines_the_outputs(ddf, frame):
    models = [linear(2, 1, 0), linear(2, 3, 1)]
    combine = lambda outputs: outputs[0] * outputs[1].max(axis=1)  # noqa: E731
    model = Ensemble(models, combine)
    with pytest.raises(OutputError, match="pass meta="):
        ddf.infer.predict(model, columns=["a", "b"])
    pred = ddf.infer.predict(model, columns=["a", "b"], meta={"score": "float32"})
    one, two = (run(each, given(frame, ["a", "b"])) for each in models)
    wanted = one[:, 0] * two.max(1)
    np.testing.assert_allclose(pred.compute()["score"], wanted, atol=1e-6)


def test_fields_are_combined_each(ddf, frame):
    model = Ensemble([Fields(), Fields(), Fields()])
    pred = ddf.infer.predict(model, columns=["a", "b"], keep=False)
    assert list(pred.columns) == ["sum", "twice"]
    total = frame["a"] + frame["b"]
    np.testing.assert_allclose(pred.compute()["sum"], total, atol=1e-6)
    one = ddf.infer.predict(model, columns=["a", "b"], output={"sum": "s"}, keep=False)
    assert list(one.compute().columns) == ["s"]


def test_callables_are_combined_as_meta_says(ddf, frame):
    model = Ensemble([lambda x: x, lambda x: x * 3])
    found = ddf["a"].infer.predict(model, meta=("twice", "float32")).compute()
    assert found.name == "twice"
    np.testing.assert_allclose(found, frame["a"] * 2, atol=1e-6)


def test_lists_of_any_length_are_averaged(ddf, frame, minilm):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)

    class Tokens(torch.nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, input_ids, attention_mask):
            return input_ids.float() * self.factor

    model = Ensemble([Tokens(1.0), Tokens(3.0)])
    found = ddf["text"].infer.predict(model, tokenizer=tokenizer).compute()
    ids = [tokenizer(text)["input_ids"] for text in frame["text"]]
    for row, tokens in zip(found, ids, strict=True):
        np.testing.assert_allclose(row, np.array(tokens) * 2.0)


@pytest.mark.parametrize("on_error", ["raise", "quarantine"])
def test_a_label_that_a_model_does_not_give_is_no_vote(ddf, frame, on_error):
    def odd(ids):
        return ["odd" if each % 2 else None for each in ids]

    def third(ids):
        return [None if each % 3 else "third" for each in ids]

    pred = ddf.infer.predict(
        Ensemble([odd, third], "vote"), columns="id", meta="string", keep=False,
        on_error=on_error,
    )  # fmt: skip
    found = pred.compute()
    wanted = [
        "odd" if each % 2 else None if each % 3 else "third" for each in frame["id"]
    ]
    assert [None if pd.isna(each) else each for each in found["prediction"]] == wanted
    if on_error == "quarantine":
        assert found["infer_error"].isna().all()


def test_votes_on_texts_beside_numbers_keep_their_dtypes(ddf, frame):
    def labels(x):
        whole = np.round(x).astype("int8")
        return {"text": ["t"] * len(x), "code": whole[:, 0], "codes": whole}

    meta = {"text": "string", "code": "int8", "codes": TensorDtype("int8", (2,))}
    model = Ensemble([(labels, ["a", "b"])] * 3, "vote")
    found = ddf.infer.predict(model, meta=meta, keep=False).compute()
    assert found["text"].eq("t").all()
    assert found["code"].dtype == "int8"
    wanted = labels(frame[["a", "b"]].to_numpy())["codes"]
    np.testing.assert_array_equal(found["code"], wanted[:, 0])
    np.testing.assert_array_equal(np.stack(found["codes"]), wanted)


def test_a_row_that_a_member_fails_on_is_missing(ddf):
    def plain(ids):
        return np.asarray(ids) * 10

    model = Ensemble([plain, refuses_row_7], combine="vote")
    pred = ddf.infer.predict(
        model, columns="id", meta="int64", on_error="quarantine", keep=False
    )
    found = pred.compute()
    assert found["prediction"].dtype == "Int64"
    assert found["prediction"].isna().sum() == 1
    (error,) = found["infer_error"].dropna()
    assert error == "member 1: forward: ValueError: seven"


@pytest.mark.parametrize(
    ("models", "combine", "reason"),
    [
        ([linear(2, 1), linear(2, 3)], "mean", r'0 returns "pred.*, member 1 .*\(3,\)'),
        ([linear(2, 1), linear(2, 3)], "stack", "must return alike"),
        ([linear(2, 3), linear(2, 3)], "vote", "labels are whole numbers or text"),
        ([Fields(), linear(2, 1)], "mean", "must return alike"),
    ],
)  # fmt: skip
def test_unlike_outputs_are_refused_with_the_reason(ddf, models, combine, reason):
    with pytest.raises(OutputError, match=reason):
        ddf.infer.predict(Ensemble(models, combine), columns=["a", "b"])


# --- nested --------------------------------------------------------------------------


def test_towers_and_ensembles_are_nested_both_ways(ddf, frame, towers, wanted):
    two = [linear(2, 3, 4), linear(2, 3, 5)]
    both = Towers(
        {
            "e": (Ensemble(two), ["a", "b"]),
            "t": Towers(towers),
            "h": Towers(towers, head=Head()),
        }
    )
    pred = ddf.infer.predict(both, keep=False)
    assert list(pred.columns) == ["e", "t_x", "t_y", "h"]
    found = pred.compute()
    mean = np.mean([run(each, given(frame, ["a", "b"])) for each in two], 0)
    np.testing.assert_allclose(found["e"].infer.to_numpy(), mean, atol=1e-6)
    np.testing.assert_allclose(found["t_y"], wanted[1], atol=1e-6)
    alone = ddf.infer.predict(Ensemble([both.towers["h"].model] * 2), keep=False)
    pd.testing.assert_series_equal(
        alone.compute()["prediction"], found["h"], check_names=False
    )


def test_a_nested_tower_that_is_not_read_does_not_run(ddf, towers):
    inner = Towers({**towers, "z": (fails, "id", {"meta": "float32"})})
    pred = ddf.infer.predict(Towers({"o": inner, "p": (torch.nn.ReLU(), "a")}))
    assert len(pred[["o_x", "p"]].compute()) == 100


def test_a_head_may_be_an_ensemble_or_towers(ddf, wanted, towers):
    def first(x, y):
        return x[:, 0]

    def last(x, y):
        return x[:, 2]

    float32 = {"meta": "float32"}
    heads = Ensemble([(first, None, float32), (last, None, float32)])
    columns = {"x": "x", "y": "y"}
    found = ddf.infer.predict(Towers(towers, head=(heads, columns))).compute()
    mean = (wanted[0][:, 0] + wanted[0][:, 2]) / 2
    np.testing.assert_allclose(found["prediction"], mean, atol=1e-6)
    split = Towers({"f": (first, columns, float32), "l": (last, columns, float32)})
    pred = ddf.infer.predict(Towers(towers, head=split), keep=False)
    assert list(pred.columns) == ["f", "l"]
    np.testing.assert_allclose(pred.compute()["l"], wanted[0][:, 2], atol=1e-6)


def test_errors_of_nested_models_name_each_level(ddf):
    model = Towers({"out": Towers({"in": SEVEN})})
    found = ddf.infer.predict(model, on_error="quarantine").compute()
    (error,) = found["infer_error"].dropna()
    assert error == 'tower "out": tower "in": forward: ValueError: seven'


# --- wherever a model is -------------------------------------------------------------


def test_a_series_takes_them_too(ddf, frame):
    model = Towers({"twice": (torch.nn.Identity(), None, {"postprocess": double})})
    found = ddf["a"].infer.predict(model).compute()
    assert isinstance(found, pd.Series) and found.name == "twice"
    np.testing.assert_allclose(found, frame["a"] * 2, atol=1e-6)
    relus = Ensemble([torch.nn.ReLU(), torch.nn.Identity()])
    mean = ddf["a"].infer.predict(relus, output="m").compute()
    wanted = (frame["a"].clip(lower=0) + frame["a"]) / 2
    np.testing.assert_allclose(mean, wanted, atol=1e-6)


def double(output, frame):
    return output * 2


def test_equal_models_share_a_replica_and_unload_frees_all(ddf):
    class Mine(torch.nn.Linear):
        """A name of its own among the replicas."""

    class Other(Mine):
        pass

    torch.manual_seed(0)
    model, other = Mine(1, 1), Other(1, 1)
    again = Mine(1, 1)
    again.load_state_dict(model.state_dict())
    both = Towers({"x": (model, ["a"]), "y": (again, ["b"]), "z": (other, ["a"])})
    ddf.infer.predict(both).compute()

    def resident():
        names = dask_infer.replicas()["model"]
        return sorted(name for name in names if name in ("Mine", "Other"))

    assert resident() == ["Mine", "Other"]
    dask_infer.unload(both)
    assert resident() == []


@pytest.mark.parametrize("combine", ["mean", "stack", lambda outputs: outputs[0]])
def test_unload_frees_what_combines_an_ensemble(ddf, combine):
    dask_infer.unload()
    models = Ensemble([linear(2, 1, 0), linear(2, 1, 1)], combine=combine)
    meta = "float32" if callable(combine) else None
    ddf.infer.predict(models, columns=["a", "b"], meta=meta).compute(scheduler="sync")
    assert len(dask_infer.replicas()) == 3
    dask_infer.unload(models)
    assert dask_infer.replicas().empty


def test_sources_are_models_of_towers(ddf, frame):
    source = dask_infer.ModelSource.from_factory(torch.nn.LeakyReLU, 0.5)
    both = Towers({"x": (source, "a", {"meta": "float32"})})
    found = ddf.infer.predict(both).compute()["x"]
    wanted = np.where(frame["a"] < 0, frame["a"] / 2, frame["a"])
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_equal_towers_have_equal_names(ddf):
    def named(seed):
        towers = {"x": (linear(2, 3, seed), ["a", "b"]), "y": (linear(1, 1), ["a"])}
        return ddf.infer.predict(Towers(towers, head=Head()))._name

    assert named(0) == named(0) != named(1)


def test_meta_of_the_whole_is_that_of_the_towers(ddf):
    both = Towers({"p": (lambda x: x, "a"), "q": (lambda x: {"r": x, "s": -x}, "b")})
    meta = {"p": "float32", "q_r": "float32", "q_s": "float64"}
    pred = ddf.infer.predict(both, meta=meta, keep=False)
    assert list(pred.columns) == list(meta)
    found = pred.compute()
    assert found.dtypes.astype(str).to_dict() == meta


def test_progress_distinguishes_towers_of_one_class(ddf):
    both = Towers({"x": (linear(2, 1), ["a", "b"]), "y": (linear(1, 1), ["a"])})
    with dask_infer.progress() as shown:
        ddf.infer.predict(both).compute()
    assert 'Linear (tower "x"): 100 rows' in repr(shown)
    assert 'Linear (tower "y"): 100 rows' in repr(shown)


# --- refusals ------------------------------------------------------------------------

X = (linear(2, 1), ["a", "b"])


@pytest.mark.parametrize(
    ("model", "arguments", "error", "message"),
    [
        (Towers({"x": X}), {"columns": ["a"]}, ValueError, "tower names its own"),
        (Towers({"x": X}), {"method": "forward"}, ValueError, "tower has its own"),
        (Towers({"x": X}), {"meta": {"q": "int64"}}, ValueError, "no output of a t"),
        (
            Towers({"x": X}), {"meta": {"x": "int64", "x_y": "int64"}},
            ValueError, '^tower "x": meta=',
        ),
        (Towers({"x": X}), {"output": {"q": "r"}}, OutputError, "'q'"),
        (Towers({"id": X}), {}, ValueError, 'input column "id", which is kept'),
        (Towers({"x": (linear(2, 1), ["a"])}), {}, InputError, '^tower "x": the model'),
        (Towers({"x": (linear(1, 1), ["q"])}), {}, InputError, '^tower "x": .*"q"'),
        (Towers({"x": (fails, "a")}), {}, OutputError, '^tower "x": .*pass meta='),
        (Towers({"x": X}, head=Head()), {}, InputError, "^head: .*argument: 'y'"),
        (
            Towers({"x": X, "z": X}, head=Head()),
            {}, InputError, "'y'.*; name the towers as the head's arguments",
        ),
        (
            Towers({"x": (Fields(), ["a", "b"])}, head=torch.nn.ReLU()),
            {}, InputError, "one argument a tower, .*x_sum, x_twice; pick one",
        ),
        (
            Towers({"a_b": X, "a": (Fields(), ["a", "b"], {"output": {"sum": "b"}})}),
            {}, ValueError, 'two outputs of towers are named "a_b"',
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_at_the_call(
    ddf, model, arguments, error, message
):
    with pytest.raises(error, match=message):
        ddf.infer.predict(model, **arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Towers({}), "a dict of one tower or more"),
        (lambda: Towers([("x", X)]), "pass a dict"),
        (lambda: Towers({1: X}), "no name of a tower"),
        (lambda: Towers({"x": (*X, {"keep": True})}), r"option 'keep'.*for the whole"),
        (lambda: Towers({"x": (*X, "cpu")}), "no options"),
        (lambda: Towers({"x": (X[0],)}), "1 parts"),
        (lambda: Ensemble([]), "pass a list of models"),
        (lambda: Ensemble(linear(1, 1)), "pass a list of models"),
        (lambda: Ensemble([X[0]], combine="max"), r'"mean", "vote", "stack" or'),
        (lambda: Ensemble([X[0]], combine=linear(1, 1)), "head of dask_infer.Towers"),
    ],
)
def test_wrong_towers_are_refused_as_they_are_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_they_show_what_they_hold():
    both = Towers({"x": X, "y": ("model.onnx", "a")}, head=Ensemble([fails, fails]))
    assert repr(both) == (
        "Towers(x=Linear, y='model.onnx', head=Ensemble([fails, fails], "
        "combine='mean'))"
    )
