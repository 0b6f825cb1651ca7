"""Calls checked on the client: what is inferred, what is refused, and how."""

import inspect
from typing import ClassVar

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import dask_infer
from dask_infer import InputError, ModelLoadError, OutputError
from dask_infer.client.job_builder import build_job
from dask_infer.client.request import Request


@pytest.fixture(autouse=True)
def in_this_process():
    with dask.config.set(scheduler="sync"):
        yield


@pytest.fixture
def vectors(tmp_path):
    """A parquet file with a column of fixed-size lists, which Dask calls objects."""
    rows = pa.array([[1.0, 2.0, 3.0]] * 4, pa.list_(pa.float32(), 3))
    table = pa.table({"x": rows, "a": pa.array([1, 2, 3, 4]), "z": rows})
    pq.write_table(table, tmp_path / "rows.parquet")
    return dd.read_parquet(tmp_path / "rows.parquet")


class Ids(torch.nn.Module):
    def forward(self, input_ids):
        return input_ids.sum(1).float()


class Words(torch.nn.Module):
    def forward(self, words):
        return words.sum(1).float()


class Beside(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(200, 2)

    def forward(self, x, input_ids):
        return self.table(x).sum((1, 2)) + input_ids.sum(1)


class Sum(torch.nn.Module):
    def forward(self, x):
        return x.sum(dim=1)


def by_letter(name):
    def tokenize(texts):
        return {name: [[len(text), 1] for text in texts]}

    return tokenize


def test_a_plain_tokenizer_of_other_names_asks_for_meta(ddf):
    with pytest.raises(OutputError, match=r"tokenizer returns is known.*meta="):
        ddf.infer.predict(Words(), columns="text", tokenizer=by_letter("words"))
    pred = ddf.infer.predict(
        Words(), columns="text", tokenizer=by_letter("words"), meta="float32"
    )
    assert len(pred.compute()) == 100


def test_a_plain_tokenizer_of_ids_is_traced(ddf):
    pred = ddf.infer.predict(Ids(), columns="text", tokenizer=by_letter("input_ids"))
    assert pred["prediction"].dtype == "float32"


@pytest.mark.parametrize(
    "columns", [("text", ["id"]), (["id"], "text"), {"text": "text", "x": ["id"]}]
)
def test_text_goes_beside_other_arguments(ddf, frame, columns):
    pred = ddf.infer.predict(
        Beside(), columns=columns, tokenizer=by_letter("input_ids"), keep=False
    )
    assert len(pred.compute()) == len(frame)


def test_a_preprocess_that_may_change_shapes_asks_for_meta(ddf):
    model, wider = torch.nn.Linear(3, 1), lambda frame: frame.assign(c=1.0)
    with pytest.raises(OutputError, match=r"as if preprocess= kept .*pass meta="):
        ddf.infer.predict(model, columns=["a", "b"], preprocess=wider)


def test_a_text_that_preprocess_reads_asks_for_meta(ddf):
    with pytest.raises(OutputError, match=r'"text" holds text.*meta='):
        ddf.infer.predict(torch.nn.ReLU(), columns="text", preprocess=len)


def test_a_postprocess_that_may_change_the_output_asks_for_meta(ddf):
    with pytest.raises(OutputError, match=r"postprocess= may change .* pass meta="):
        ddf.infer.predict(
            torch.nn.Linear(2, 3),
            columns=["a", "b"],
            output=["one", "two"],
            postprocess=lambda output, frame: output[:, :2],
        )


def test_integers_are_found_in_spite_of_preprocess_and_meta(ddf):
    pred = ddf.infer.predict(
        torch.nn.Sequential(torch.nn.Embedding(200, 1), torch.nn.Flatten(0)),
        columns=["id"],
        preprocess=lambda frame: frame,
        meta="float32",
    )
    assert len(pred.compute()) == 100


class Runs(torch.nn.Embedding):
    """Counts its calls, in copies too."""

    calls: ClassVar[list[bool]] = []

    def forward(self, x, y=None):
        self.calls.append(True)
        return super().forward(x)[:, 0, 0]


@pytest.mark.parametrize("columns", [["id"], {"x": ["id"]}, (["id"], ["a", "b"])])
def test_with_meta_a_module_runs_on_workers_alone(ddf, columns):
    model = Runs(200, 1)
    Runs.calls.clear()
    pred = ddf.infer.predict(model, columns=columns, keep=["id"], meta="float32")
    assert not Runs.calls
    found = pred.compute()
    wanted = model.weight.detach().numpy()[found["id"], 0]
    np.testing.assert_array_equal(found["prediction"], wanted)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({"columns": (["id"], ["a"], ["b"])}, InputError),
        ({"columns": ["id"], "call_kwargs": {"z": 1}}, InputError),
        ({"columns": ["id"], "method": "forwards"}, ModelLoadError),
    ],
)
def test_with_meta_arguments_are_checked_without_a_run(ddf, request_, error):
    Runs.calls.clear()
    with pytest.raises(error):
        ddf.infer.predict(Runs(200, 1), meta="float32", **request_)
    assert not Runs.calls


def test_preprocess_and_meta_outweigh_shapes_that_do_not_fit(ddf):
    pred = ddf.infer.predict(
        torch.nn.Linear(3, 1),
        columns=["a", "b"],
        preprocess=lambda frame: torch.ones(len(frame), 3),
        meta="float32",
    )
    assert len(pred.compute()) == 100


@pytest.mark.parametrize(
    "change",
    [
        lambda ddf: ddf.assign(c=1),
        lambda ddf: ddf.astype({"a": "float32"}),
        lambda ddf: ddf[["z"]].rename(columns={"z": "x"}),
        lambda ddf: ddf.drop(columns="a"),
        lambda ddf: ddf.reset_index(drop=True),
        lambda ddf: ddf.repartition(npartitions=2),
        lambda ddf: ddf.dropna(subset=["a"]),
        lambda ddf: ddf.infer.predict(torch.nn.ReLU(), columns="a"),
        lambda ddf: ddf["x"].to_frame(),
    ],
)
def test_row_shapes_of_parquet_pass_what_keeps_them(vectors, change):
    job, _ = build_job(
        Request(torch.nn.Linear(3, 1), "x", keep=False), change(vectors).expr
    )
    assert job.inputs.arguments[0].shape == (3,)


@pytest.mark.parametrize(
    "change",
    [
        lambda ddf: ddf.assign(x=ddf["z"]),
        lambda ddf: ddf.astype({"x": "object"}),
        lambda ddf: ddf[["a"]].rename(columns={"a": "x"}),
        lambda ddf: ddf.map_partitions(lambda part: part),
    ],
)
def test_row_shapes_of_parquet_end_where_values_change(vectors, change):
    from dask_infer._dask import schema_columns

    kind = schema_columns(change(vectors).expr).get("x")
    assert kind is None or kind == pa.int64()


def test_objects_are_text_for_a_model_of_texts(minilm):
    with dask.config.set({"dataframe.convert-string": False}):
        notes = pd.DataFrame({"note": pd.Series(["a", "b"], dtype=object)})
        ddf = dd.from_pandas(notes, npartitions=1)
        job, _ = build_job(Request(str(minilm), "note"), ddf.expr)
    assert job.inputs.tokenized


@pytest.mark.parametrize("keep", [("a",), ["a"], pd.Index(["a"]), np.array(["a"])])
def test_keep_is_any_list(ddf, keep):
    pred = ddf.infer.predict(Sum(), columns=["a", "b"], keep=keep)
    assert list(pred.columns) == ["a", "prediction"]


def test_a_column_kept_twice_is_refused(ddf):
    with pytest.raises(ValueError, match='keep names column "a" twice'):
        ddf.infer.predict(Sum(), columns=["a"], keep=["a", "a"])


def test_two_columns_of_one_name_are_refused(frame):
    twice = frame[["a", "b", "id"]].set_axis(["a", "a", "id"], axis=1)
    ddf = dd.from_pandas(twice, npartitions=1)
    with pytest.raises(InputError, match='two columns are named "a"'):
        ddf.infer.predict(Sum(), columns=["id"], keep=False)


def test_a_dtype_needs_a_torch_model(ddf):
    with pytest.raises(ValueError, match="leave out dtype="):
        ddf.infer.predict(np.sum, columns="a", dtype="float32", meta="float32")


def test_a_missing_method_is_refused_at_the_call(ddf):
    linear = pytest.importorskip("sklearn.linear_model")
    model = linear.LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0])
    for each, method in ((model, "predict_proba"), (np.sum, "score")):
        with pytest.raises(ModelLoadError, match=f"no method {method}"):
            ddf.infer.predict(each, columns=["a"], method=method, meta="float32")


def test_counts_of_numpy_are_counts(ddf):
    request = Request(Sum(), ["a"], batch_size=np.int64(8), batch_tokens=np.int32(9))
    job, _ = build_job(request, ddf.expr)
    assert (type(job.batch_size), job.batch_size) == (int, 8)
    assert (type(job.batch_tokens), job.batch_tokens) == (int, 9)


@pytest.mark.parametrize("key", ["batch.rows", "batch.tokens"])
@pytest.mark.parametrize("value", ["many", 0, -1, 2.5, True])
def test_a_count_that_is_configured_wrongly_is_refused_by_its_name(ddf, key, value):
    with (
        dask.config.set({f"infer.{key}": value}),
        pytest.raises(ValueError, match=rf"infer\.{key}.*pass a positive whole"),
    ):
        ddf.infer.predict(Sum(), columns=["a"])


def test_one_name_in_a_list_takes_all_of_a_row(ddf):
    pred = ddf.infer.predict(
        torch.nn.Linear(2, 3), columns=["a", "b"], output=["z"], keep=False
    )
    assert pred["z"].compute().infer.to_numpy().shape == (100, 3)
    assert isinstance(pred["z"].dtype, dask_infer.TensorDtype)


class Pairs(torch.nn.Module):
    """What CLIP returns: rows, and each row's likeness to all others of the batch."""

    def forward(self, x):
        return {"logits_per_row": x @ x.T, "embeds": x * 2}


def test_a_field_of_pairs_of_rows_is_left_out_or_refused_by_name(ddf):
    pred = ddf.infer.predict(Pairs(), columns=["a", "b"], keep=False)
    assert list(pred.columns) == ["embeds"]
    wanted = ddf[["a", "b"]].compute().to_numpy("float32") * 2
    np.testing.assert_array_equal(np.stack(pred["embeds"].compute()), wanted)
    with pytest.raises(OutputError, match=r"whole batch in field 'logits_per_row'"):
        ddf.infer.predict(
            Pairs(), columns=["a", "b"], output={"logits_per_row": "logits"}
        )


def test_an_output_of_pairs_of_rows_is_refused(ddf):
    class Alone(torch.nn.Module):
        def forward(self, x):
            return x @ x.T

    with pytest.raises(OutputError, match=r"depends on the whole batch in the output"):
        ddf.infer.predict(Alone(), columns=["a", "b"])


@pytest.mark.parametrize("columns", [["a", "b"], "a"])
def test_a_module_without_parameters_runs_in_the_dtype_asked_for(ddf, columns):
    class Third(torch.nn.Module):
        def forward(self, x):
            return x / 3

    pred = ddf.infer.predict(Third(), columns=columns, keep=False, dtype="float64")
    wanted = ddf[columns].compute().to_numpy("float64") / 3
    found = pred["prediction"].compute()
    assert found.dtype == pred["prediction"].dtype
    np.testing.assert_array_equal(np.array(found.tolist()), wanted)


def test_a_series_takes_the_arguments_of_a_dataframe() -> None:
    frame, series = (
        inspect.signature(cls.predict).parameters
        for cls in (dask_infer.DataFrameInfer, dask_infer.SeriesInfer)
    )
    request = inspect.signature(Request).parameters
    assert [*frame] == [*series] == ["self", *request]
    changed = {name for name in frame if frame[name].default != series[name].default}
    assert changed == {"keep"}
    for name, parameter in request.items():
        assert frame[name].default == parameter.default


@pytest.mark.parametrize("method", ["predict", "explain"])
def test_a_misspelt_argument_is_refused_in_the_name_of_the_method(ddf, method):
    for infer in (ddf.infer, ddf[ddf.columns[0]].infer):
        call = getattr(infer, method)
        with pytest.raises(TypeError, match=rf"{method}\(\) .*argument 'colums'"):
            call(abs, colums="x")
        with pytest.raises(TypeError, match=rf"{method}\(\) .*argument: 'model'"):
            call(columns="x")
        with pytest.raises(TypeError, match=rf"{method}\(\) .*positional"):
            call(abs, "x")


def test_the_help_of_a_series_explains_every_argument() -> None:
    text = inspect.getdoc(dask_infer.SeriesInfer.predict)
    assert text.index("other defaults") < text.index("Parameters\n----------\nmodel")
    for name in inspect.signature(dask_infer.SeriesInfer.predict).parameters:
        assert name == "self" or f"\n{name}\n    " in text
    assert text.count("Returns\n") == 1


@pytest.mark.parametrize("columns", [0, (0,), [0], {"sentences": 0}])
def test_texts_may_be_in_a_column_that_is_named_by_a_number(minilm, columns):
    texts = pd.DataFrame({0: ["a row", "another"], 1: [1.0, 2.0]})
    ddf = dd.from_pandas(texts, npartitions=1)
    job, _ = build_job(Request(str(minilm), columns), ddf.expr)
    assert job.inputs.tokenized


def test_a_model_that_is_refused_is_not_written(ddf, tmp_path):
    model, stages = torch.nn.Linear(2, 100_000), dask_infer.Layout(stages=2)
    with dask.config.set({"infer.store.path": str(tmp_path)}):
        with pytest.raises(ValueError, match="pass at most stages=1"):
            ddf.infer.predict(model, columns=["a", "b"], parallel=stages)
        refused = sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file())
        ddf.infer.predict(model, columns=["a", "b"])
        taken = sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file())
    assert refused < 400_000 < taken


@pytest.mark.parametrize(
    ("name", "function", "cause"),
    [
        ("preprocess", lambda: 0, r"called with \(frame\), and takes \(\)"),
        ("postprocess", lambda output: output, r"inputs\), and takes \(output\)"),
        ("postprocess", torch.nn.Softmax(dim=1), r"takes \(input"),
    ],
)
def test_functions_of_other_arguments_are_refused(name, function, cause):
    with pytest.raises(ValueError, match=cause):
        Request(None, **{name: function})


@pytest.mark.parametrize(
    "function",
    [
        lambda output, frame: output,
        lambda output, frame, inputs: output,
        lambda *arguments: arguments[0],
        lambda output, frame, places=2: output,
        torch.sigmoid,  # its arguments cannot be read
    ],
)
def test_functions_that_can_be_called_are_taken(function):
    assert Request(None, postprocess=function).postprocess is function


def test_a_plan_as_layout_is_answered_with_its_layout():
    with pytest.raises(ValueError, match=r"plan\.layout"):
        Request(None, parallel=object())
