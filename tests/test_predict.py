"""`predict` as a user calls it: API sections 1, 3 and 4 on real frames and models."""

import collections
import dataclasses

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from dask.dataframe.utils import assert_eq

import dask_infer
from dask_infer import InputError, ModelLoadError, ModelSource, OutputError
from dask_infer.replica.cache import cache

N = 50


@pytest.fixture(autouse=True)
def in_this_process():
    with dask.config.set(scheduler="sync"):
        yield


@pytest.fixture
def pdf():
    rng = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "a": rng.normal(size=N).astype("float32"),
            "b": rng.normal(size=N).astype("float64"),
            "i": np.arange(N) % 7,
            "t": [f"text {i}" for i in range(N)],
        },
        index=pd.Index(np.arange(N) * 2, name="key"),
    )


@pytest.fixture
def ddf(pdf):
    return dd.from_pandas(pdf, npartitions=4)


class Sum(torch.nn.Module):
    def forward(self, x):
        return x.sum(dim=1)


class Two(torch.nn.Module):
    def forward(self, x, y):
        return x - y


def near(result, expected):
    np.testing.assert_allclose(
        np.asarray(result, "float64"), np.asarray(expected, "float64"), rtol=1e-5
    )


# --- section 3: columns to tensors ---------------------------------------------------


def test_a_list_is_one_stacked_tensor(ddf, pdf):  # SP-07
    pred = ddf.infer.predict(Sum(), columns=["a", "b", "i"])
    near(pred["prediction"].compute(), pdf.a + pdf.b + pdf.i)


def test_one_name_is_one_vector(ddf, pdf):  # SP-08
    pred = ddf.infer.predict(torch.nn.ReLU(), columns="a", output="r")
    near(pred["r"].compute(), pdf.a.clip(lower=0))


def test_a_list_of_one_is_a_matrix(ddf, pdf):
    pred = ddf.infer.predict(Sum(), columns=["a"])
    near(pred["prediction"].compute(), pdf.a)


def test_a_tuple_is_positional_arguments(ddf, pdf):  # SP-09
    pred = ddf.infer.predict(Two(), columns=("a", "b"))
    near(pred["prediction"].compute(), pdf.a - pdf.b)


def test_a_dict_is_keyword_arguments(ddf, pdf):  # SP-10
    pred = ddf.infer.predict(Two(), columns={"y": "a", "x": "b"})
    near(pred["prediction"].compute(), pdf.b - pdf.a)


def test_arguments_may_be_stacks(ddf, pdf):  # SP-11
    class Model(torch.nn.Module):
        def forward(self, one, many):
            return one + many.sum(dim=1)

    pred = ddf.infer.predict(Model(), columns=("a", ["b", "i"]))
    near(pred["prediction"].compute(), pdf.a + pdf.b + pdf.i)


def test_all_columns_by_default(ddf, pdf):
    pred = ddf[["a", "i"]].infer.predict(Sum())
    near(pred["prediction"].compute(), pdf.a + pdf.i)


def test_wrong_arity_explains_tuples_and_lists(ddf):  # SP-13
    with pytest.raises(InputError, match=r'\["a", "b"\]'):
        ddf.infer.predict(Two(), columns=["a", "b"])
    with pytest.raises(InputError):
        ddf.infer.predict(Sum(), columns=("a", "b"))


def test_wrong_shape_names_the_numbers(ddf):  # SP-13
    with pytest.raises(InputError, match="10"):
        ddf.infer.predict(torch.nn.Linear(10, 1), columns=["a", "b"])


def test_an_unknown_column_is_named(ddf):
    with pytest.raises(InputError, match='"nope"'):
        ddf.infer.predict(Sum(), columns=["a", "nope"])


def test_text_without_a_tokenizer_is_refused(ddf):
    with pytest.raises(InputError, match=r'column "t" holds text.*tokenizer='):
        ddf.infer.predict(Sum(), columns=["a", "t"])


def test_an_embedding_gets_integers(ddf, pdf):  # section 3, dtypes
    torch.manual_seed(0)
    table = torch.nn.Embedding(7, 3)
    pred = ddf.infer.predict(table, columns="i", output="e")
    expected = table(torch.tensor(pdf.i.to_numpy())).detach().numpy()
    near(pred["e"].infer.to_numpy(), expected)
    stacked = ddf.assign(j=ddf.i).infer.predict(table, columns=["i", "j"], output="e")
    assert stacked["e"].infer.to_numpy().shape == (N, 2, 3)


def test_nullable_and_arrow_numbers(pdf):  # SP-33
    frame = pdf.assign(
        i=pdf.i.astype("Int64"), b=pdf.b.astype(pd.ArrowDtype(pa.float64()))
    )
    frame.loc[0, "b"] = None
    pred = dd.from_pandas(frame, npartitions=2).infer.predict(Sum(), columns=["i", "b"])
    result = pred["prediction"].compute()
    assert np.isnan(result.iloc[0])
    near(result.iloc[1:], (pdf.i + pdf.b).iloc[1:])


def test_a_missing_integer_names_its_column(pdf):
    frame = pdf.assign(i=pdf.i.astype("Int64"))
    frame.loc[4, "i"] = None
    pred = dd.from_pandas(frame, npartitions=1).infer.predict(
        torch.nn.Embedding(7, 2), columns="i"
    )
    with pytest.raises(InputError, match='"i"'):
        pred.compute()


def image_frames():
    """One image column, in every form that holds lists."""
    images = np.random.default_rng(0).normal(size=(N, 12)).astype("float32")
    fixed = pd.arrays.ArrowExtensionArray(
        pa.FixedSizeListArray.from_arrays(pa.array(images.ravel()), 12)
    )
    variable = pd.arrays.ArrowExtensionArray(pa.array(images.tolist()))
    return images, {
        "arrow fixed": fixed,
        "arrow variable": variable,
        "arrays": pd.Series(list(images), dtype=object),
        "lists": pd.Series(images.tolist(), dtype=object),
        "tensor": dask_infer.TensorArray.from_numpy(images),
    }


@pytest.mark.parametrize("form", list(image_frames()[1]))
def test_lists_become_tensors(form):  # SP-12, SP-15
    images, forms = image_frames()
    with dask.config.set({"dataframe.convert-string": False}):
        ddf = dd.from_pandas(pd.DataFrame({"x": forms[form]}), npartitions=3)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 2), torch.nn.Flatten())
    pred = ddf.infer.predict(model, columns="x", shapes={"x": (1, 3, 4)}, output="y")
    expected = model(torch.tensor(images).reshape(N, 1, 3, 4)).detach().numpy()
    np.testing.assert_allclose(
        pred["y"].infer.to_numpy(), expected, rtol=1e-4, atol=1e-6
    )


def test_row_shape_comes_from_the_parquet_schema(tmp_path):
    _, forms = image_frames()
    pq.write_table(pa.table({"x": forms["arrow fixed"]}), tmp_path / "a.parquet")
    ddf = dd.read_parquet(tmp_path / "a.parquet")
    pred = ddf.infer.predict(torch.nn.Linear(12, 2), columns="x", output="y")
    assert pred["y"].infer.to_numpy().shape == (N, 2)


def test_unknown_row_shape_asks_for_shapes(tmp_path):
    _, forms = image_frames()
    pq.write_table(pa.table({"x": forms["arrow variable"]}), tmp_path / "a.parquet")
    ddf = dd.read_parquet(tmp_path / "a.parquet")
    with pytest.raises(OutputError, match=r'shapes=\{"x"'):
        ddf.infer.predict(torch.nn.Linear(12, 2), columns="x")
    pred = ddf.infer.predict(torch.nn.Linear(12, 2), columns="x", shapes={"x": [12]})
    assert pred["prediction"].infer.to_numpy().shape == (N, 2)


def test_a_ragged_row_is_named():  # SP-32
    rows = [[1.0, 2.0]] * 5 + [[1.0]] + [[1.0, 2.0]] * 4
    column = pd.arrays.ArrowExtensionArray(pa.array(rows))
    ddf = dd.from_pandas(pd.DataFrame({"x": column}), npartitions=1)
    pred = ddf.infer.predict(torch.nn.Linear(2, 1), columns="x", shapes={"x": (2,)})
    with pytest.raises(InputError, match=r'"x".*5'):
        pred.compute()


def test_a_leading_null_in_a_tensor_column():  # SP-31
    rows = [None, [1.0, 2.0], [3.0, 4.0]]
    column = pd.arrays.ArrowExtensionArray(pa.array(rows, pa.list_(pa.float32(), 2)))
    ddf = dd.from_pandas(pd.DataFrame({"x": column}), npartitions=1)
    result = ddf.infer.predict(Sum(), columns="x")["prediction"].compute()
    assert np.isnan(result.iloc[0])
    near(result.iloc[1:], [3, 7])


def test_lists_turned_into_text_name_the_setting():
    lists = pd.DataFrame({"x": [[1.0, 2.0]] * 4})
    ddf = dd.from_pandas(lists, npartitions=1)
    with pytest.raises(InputError, match=r"convert-string|holds text"):
        ddf.infer.predict(Sum(), columns="x", shapes={"x": (2,)}).compute()


def test_callables_get_arrays_in_their_own_dtypes(ddf, pdf):
    def f(i, t):
        assert i.dtype == "int64"
        assert isinstance(t, list)
        return np.array([len(s) + n for s, n in zip(t, i, strict=True)])

    pred = ddf.infer.predict(f, columns=("i", "t"), meta="int64")
    assert pred["prediction"].compute().tolist() == [
        len(s) + n for s, n in zip(pdf.t, pdf.i, strict=True)
    ]


def test_a_callable_asks_for_meta(ddf):
    with pytest.raises(OutputError, match=r'meta="float32"'):
        ddf.infer.predict(lambda x: x, columns="a")


def test_preprocess_gets_the_batch_with_its_columns_and_index(ddf, pdf):
    def preprocess(frame):
        assert list(frame.columns) == ["a", "b"]
        assert frame.index.name == "key"
        return frame.assign(b=0.0)

    pred = ddf.infer.predict(Sum(), columns=["a", "b"], preprocess=preprocess)
    near(pred["prediction"].compute(), pdf.a)


@pytest.mark.parametrize("kind", ["tensor", "dict", "frame"])
def test_preprocess_may_return(ddf, pdf, kind):
    def preprocess(frame):
        x = torch.tensor(frame[["a"]].to_numpy(copy=True))
        if kind == "tensor":
            return x
        return {"x": x} if kind == "dict" else frame[["a"]]

    pred = ddf.infer.predict(Sum(), preprocess=preprocess, meta={"p": "float32"})
    near(pred["p"].compute(), pdf.a)


# --- section 4: tensors to columns ---------------------------------------------------


class Returns(torch.nn.Module):
    """Returns what `shape_up` makes of the input."""

    def __init__(self, shape_up):
        super().__init__()
        self.shape_up = shape_up

    def forward(self, x):
        return self.shape_up(x)


Named = collections.namedtuple("Named", "left right")


@dataclasses.dataclass
class Record:
    left: torch.Tensor
    note: str = "dropped"


OUTPUTS = {
    "vector": (lambda x: x[:, 0], None, {"prediction": ("float32", ())}),
    "n by 1": (lambda x: x[:, :1], "p", {"p": ("float32", ())}),
    "k columns": (
        lambda x: x,
        ["u", "v"],
        {"u": ("float32", ()), "v": ("float32", ())},
    ),
    "vectors": (lambda x: x, "e", {"e": ("float32", (2,))}),
    "matrices": (lambda x: x[:, :, None] * x[:, None], "m", {"m": ("float32", (2, 2))}),
    "dict": (
        lambda x: {"left": x[:, 0], "right": x, "n": 3},
        None,
        {"left": ("float32", ()), "right": ("float32", (2,))},
    ),
    "picked": (
        lambda x: {"left": x[:, 0], "r": x},
        {"left": "l"},
        {"l": ("float32", ())},
    ),
    "named tuple": (
        lambda x: Named(x[:, 0], x[:, 1]),
        None,
        {"left": ("float32", ()), "right": ("float32", ())},
    ),
    "dataclass": (lambda x: Record(x[:, 0]), None, {"left": ("float32", ())}),
    "tuple": (
        lambda x: (x[:, 0], x),
        None,
        {"prediction_0": ("float32", ()), "prediction_1": ("float32", (2,))},
    ),
    "named by output": (
        lambda x: (x[:, 0], x[:, 1]),
        ["u", "v"],
        {"u": ("float32", ()), "v": ("float32", ())},
    ),
    "bfloat16": (lambda x: x[:, 0].bfloat16(), None, {"prediction": ("float32", ())}),
    "int": (lambda x: x.argmax(dim=1), None, {"prediction": ("int64", ())}),
    "bool": (lambda x: x[:, 0] > 0, None, {"prediction": ("bool", ())}),
}


@pytest.mark.parametrize("case", list(OUTPUTS))
def test_outputs_become_columns(ddf, pdf, case):  # SP-14, SP-15, BM dict, XG-08
    shape_up, output, promised = OUTPUTS[case]
    pred = ddf.infer.predict(
        Returns(shape_up), columns=["a", "b"], output=output, keep=False, batch_size=5
    )
    assert list(pred.columns) == list(promised)
    result = pred.compute()
    assert_eq(pred, result)
    for name, (dtype, shape) in promised.items():
        values = result[name].infer.to_numpy() if shape else result[name].to_numpy()
        assert values.dtype == dtype
        assert values.shape == (N, *shape)
        assert str(pred.dtypes[name]) == str(result.dtypes[name])
    x = torch.tensor(pdf[["a", "b"]].to_numpy("float32"))
    direct = shape_up(x)
    if case in ("vector", "vectors", "matrices"):
        near(values.reshape(N, -1), direct.reshape(N, -1))


def test_names_that_collide_are_refused(ddf):  # ON-10
    with pytest.raises(ValueError, match='"a"'):
        ddf.infer.predict(Sum(), columns=["a", "b"], output="a")
    pred = ddf.infer.predict(Sum(), columns=["a", "b"], output="a", keep=["i"])
    assert list(pred.columns) == ["i", "a"]


def test_wrong_row_count_says_how_many(ddf):
    pred = ddf.infer.predict(
        lambda x: x[:-1], columns="a", meta="float32", batch_size=10
    )
    with pytest.raises(OutputError, match=r"9 rows for a batch of 10"):
        pred.compute()


def test_a_model_that_answers_for_the_batch_is_refused(ddf):
    with pytest.raises(OutputError, match="rows"):
        ddf.infer.predict(Returns(lambda x: x.sum(dim=0)), columns=["a", "b"])


def test_strings_become_dask_strings(ddf, pdf):
    def f(x):
        return [f"{v:.2f}" for v in x]

    pred = ddf.infer.predict(f, columns="a", meta="string", output="s")
    assert pred["s"].dtype == ddf["t"].dtype
    assert pred["s"].compute().tolist() == [f"{v:.2f}" for v in pdf.a]


@pytest.mark.parametrize(
    "meta",
    [
        {"u": "float32", "v": "int64"},
        pd.DataFrame({"u": pd.Series(dtype="float32"), "v": pd.Series(dtype="int64")}),
        [("u", "float32"), ("v", "int64")],
    ],
)
def test_meta_in_every_form(ddf, pdf, meta):
    def f(x):
        return {"u": x, "v": np.arange(len(x))}

    pred = ddf.infer.predict(f, columns="a", meta=meta)
    assert_eq(pred[["a", "u"]], pdf[["a"]].assign(u=pdf.a))
    assert pred.dtypes["v"] == "int64"


@pytest.mark.parametrize("rows", ["dicts", "frame", "numpy"])
def test_other_outputs_as_one_would_guess(ddf, pdf, rows):  # SP-14
    def f(x):
        if rows == "dicts":
            return [{"u": float(v), "v": 1} for v in x]
        if rows == "frame":
            return pd.DataFrame({"u": x, "v": 1})
        return np.stack([x, np.ones_like(x)], axis=1)

    integer = "float64" if rows == "numpy" else "int64"
    pred = ddf.infer.predict(f, columns="a", meta={"u": "float64", "v": integer})
    near(pred["u"].compute(), pdf.a)
    assert (pred["v"].compute() == 1).all()


def test_postprocess_sees_output_frame_and_inputs(ddf, pdf):
    def postprocess(output, frame, inputs):
        assert torch.is_tensor(output)
        assert list(frame.columns) == ["a", "b"]
        return output + inputs[:, 0]

    pred = ddf.infer.predict(Sum(), columns=["a", "b"], postprocess=postprocess)
    near(pred["prediction"].compute(), 2 * pdf.a + pdf.b)


def test_postprocess_of_two_arguments(ddf, pdf):
    pred = ddf.infer.predict(
        Sum(), columns=["a", "b"], postprocess=lambda output, frame: output * 2
    )
    near(pred["prediction"].compute(), 2 * (pdf.a + pdf.b))


def test_postprocess_that_changes_dtype_asks_for_meta(ddf):
    pred = ddf.infer.predict(
        Sum(), columns=["a", "b"], postprocess=lambda output, frame: output > 0
    )
    with pytest.raises(OutputError, match="meta="):
        pred.compute()


# --- section 1: the call --------------------------------------------------------------


def test_a_series_gives_a_series(ddf, pdf):
    pred = ddf["a"].infer.predict(torch.nn.ReLU(), output="r")
    assert isinstance(pred, dd.Series)
    assert pred.name == "r"
    near(pred.compute(), pdf.a.clip(lower=0))


def test_a_series_may_be_kept(ddf):
    pred = ddf["a"].infer.predict(torch.nn.ReLU(), keep=True)
    assert list(pred.columns) == ["a", "prediction"]


def test_method_and_call_kwargs(ddf, pdf):  # BM-26
    class Model(torch.nn.Module):
        def forward(self, x):
            return x.sum(dim=1)

        def scaled(self, x, factor=1.0):
            return x.sum(dim=1) * factor

    pred = ddf.infer.predict(
        Model(), columns=["a", "b"], method="scaled", call_kwargs={"factor": 3.0}
    )
    near(pred["prediction"].compute(), 3 * (pdf.a + pdf.b))
    with pytest.raises(InputError, match="nope"):
        ddf.infer.predict(Model(), columns=["a", "b"], call_kwargs={"nope": 1})
    with pytest.raises((ModelLoadError, AttributeError), match="no_such"):
        ddf.infer.predict(Model(), columns=["a", "b"], method="no_such")


def test_the_model_is_taken_as_it_is_at_the_call(ddf, pdf):
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 2.0)
    pred = ddf.infer.predict(model, columns=["a"])
    torch.nn.init.constant_(model.weight, 5.0)
    near(pred["prediction"].compute(), 2 * pdf.a)
    del model
    near(pred["prediction"].compute(), 2 * pdf.a)  # DI-21


def test_eval_and_no_grad_are_enforced(ddf):  # DI-24
    model = torch.nn.Sequential(torch.nn.Dropout(0.9), Sum())
    model.train()
    seen = []

    def postprocess(output, frame):
        seen.append((output.requires_grad, torch.is_inference_mode_enabled()))
        return output

    pred = ddf.infer.predict(model, columns=["a", "b"], postprocess=postprocess)
    one, two = pred.compute(), pred.compute()
    pd.testing.assert_frame_equal(one, two)
    assert model.training
    assert all(not grad for grad, _ in seen)


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_batches_are_bounded(pdf, rows):  # SP-05, SP-16
    sizes = []

    def f(x):
        sizes.append(len(x))
        return x

    ddf = dd.from_pandas(pdf.iloc[:rows], npartitions=1)
    pred = ddf.infer.predict(f, columns="a", meta="float32", batch_size=3)
    assert len(pred.compute()) == rows
    # The function was pickled, its list with it: only the sum of rows is known here.
    assert all(size <= 3 for size in sizes)


def test_batch_size_is_an_upper_bound(ddf):  # SP-05
    pred = ddf.infer.predict(
        lambda x: np.full(len(x), len(x)), columns="a", meta="int64", batch_size=4
    )
    sizes = pred["prediction"].compute().to_list()
    assert max(sizes) == 4
    assert sizes[:13] == [4] * 12 + [1]


def test_empty_partitions_and_empty_frames(ddf, pdf):  # DI-11, DM-14
    pred = ddf[ddf.i == 3].infer.predict(Sum(), columns=["a", "b"])
    assert_eq(pred, pred.compute())
    none = ddf[ddf.i > 100].infer.predict(
        Returns(lambda x: {"s": x[:, 0], "v": x}), columns=["a", "b"]
    )
    empty = none.compute()
    assert len(empty) == 0
    assert list(empty.columns) == list(none.columns)
    assert (empty.dtypes == none.dtypes).all()
    zero = dd.from_pandas(pdf.iloc[:0], npartitions=1)
    assert len(zero.infer.predict(Sum(), columns=["a", "b"]).compute()) == 0


INDEXES = {
    "shuffled": lambda n: pd.Index(np.random.default_rng(0).permutation(n)),
    "duplicated": lambda n: pd.Index(np.zeros(n, "int64"), name="zeros"),
    "datetime": lambda n: pd.date_range("2026-01-01", periods=n, freq="h"),
    "text": lambda n: pd.Index([f"k{i}" for i in range(n)]),
}


@pytest.mark.parametrize("kind", [*INDEXES, "multi"])
@pytest.mark.parametrize("sort", [True, False])
def test_rows_keep_their_index(pdf, kind, sort):  # DI-12, XG-07
    if kind == "multi":
        pytest_frame = pdf.set_index(["i", "t"], drop=False)
        ddf = dd.from_map(
            lambda part: pytest_frame.iloc[part * 25 : part * 25 + 25], [0, 1]
        )
        expected = ddf.compute()
    else:
        expected = pdf.set_axis(INDEXES[kind](N))
        ddf = dd.from_pandas(expected, npartitions=3, sort=sort)
        expected = ddf.compute()
    result = ddf.infer.predict(Sum(), columns=["a", "b"]).compute()
    pd.testing.assert_index_equal(result.index, expected.index)
    near(result["prediction"], expected.a + expected.b)


def test_divisions_are_kept(ddf):
    pred = ddf.infer.predict(Sum(), columns=["a", "b"])
    assert pred.divisions == ddf.divisions


def test_two_models_in_one_graph(ddf, pdf):  # DI-22
    double = Returns(lambda x: x.sum(dim=1) * 2)
    pred = ddf.infer.predict(Sum(), columns=["a", "b"], output="one")
    pred = pred.infer.predict(double, columns=["a", "b"], output="two")
    result = pred.compute()
    near(result["two"], 2 * result["one"])


def test_a_prediction_is_an_input_again(ddf, pdf):
    pred = ddf.infer.predict(Returns(lambda x: x * 2), columns=["a", "b"], output="v")
    again = pred.infer.predict(Sum(), columns="v", output="s")
    near(again["s"].compute(), 2 * (pdf.a + pdf.b))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("batch_size", 0),
        ("batch_size", 1.5),
        ("batch_tokens", "many"),
        ("device", "gpu"),
        ("dtype", "float12"),
        ("keep", "a"),
        ("preprocess", 3),
        ("timeout", -1),
        ("row_wise", None),
        ("method", 3),
        ("call_kwargs", [1]),
        ("shapes", [3]),
    ],
)
def test_bad_choices_are_refused_by_name(ddf, argument, value):
    with pytest.raises(ValueError, match=argument):
        ddf.infer.predict(Sum(), columns=["a", "b"], **{argument: value})


def test_keep_of_an_unknown_column(ddf):
    with pytest.raises(InputError, match='"nope"'):
        ddf.infer.predict(Sum(), columns=["a", "b"], keep=["nope"])


# --- section 2: models


def test_a_class_is_built_on_the_worker(ddf, pdf):  # RY
    class Model:
        def __init__(self):
            self.offset = 1.0

        def __call__(self, x):
            return x + self.offset

    pred = ddf.infer.predict(Model, columns="a", meta="float32")
    near(pred["prediction"].compute(), pdf.a + 1)


def test_a_factory_takes_arguments(ddf, pdf):
    source = ModelSource.from_factory(torch.nn.Linear, 2, 3)
    pred = ddf.infer.predict(
        source,
        columns=["a", "b"],
        meta=pd.Series(dtype=dask_infer.TensorDtype("float32", (3,))),
    )
    assert pred.iloc[:, -1].infer.to_numpy().shape == (N, 3)


def test_weights_fill_a_factory(ddf, tmp_path):
    from safetensors.torch import save_file

    model = torch.nn.Linear(2, 3)
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    source = ModelSource.from_factory(
        torch.nn.Linear, 2, 3, weights=tmp_path / "m.safetensors"
    )
    pred = ddf.infer.predict(source, columns=["a", "b"], output="y")
    direct = ddf.infer.predict(model, columns=["a", "b"], output="y")
    near(pred["y"].infer.to_numpy(), direct["y"].infer.to_numpy())


def test_an_exported_program(ddf, pdf, tmp_path):
    dim = torch.export.Dim("rows")
    program = torch.export.export(Sum(), (torch.ones(2, 2),), dynamic_shapes=[{0: dim}])
    torch.export.save(program, tmp_path / "m.pt2")
    pred = ddf.infer.predict(tmp_path / "m.pt2", columns=["a", "b"])
    near(pred["prediction"].compute(), pdf.a + pdf.b)


def test_pickled_modules_need_trust(ddf, tmp_path):
    torch.save(torch.nn.Linear(2, 1), tmp_path / "m.pt")
    with pytest.raises(ModelLoadError, match="trust=True"):
        ddf.infer.predict(str(tmp_path / "m.pt"), columns=["a", "b"])
    source = ModelSource.from_path(tmp_path / "m.pt", trust=True)
    pred = ddf.infer.predict(source, columns=["a", "b"], meta="float32")
    assert len(pred.compute()) == N


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_torchscript(ddf, pdf, tmp_path):
    torch.jit.save(torch.jit.trace(Sum(), torch.ones(3, 2)), tmp_path / "m.pt")
    source = ModelSource.from_path(tmp_path / "m.pt", trust=True)
    pred = ddf.infer.predict(source, columns=["a", "b"], meta="float32")
    near(pred["prediction"].compute(), pdf.a + pdf.b)


def test_estimators(ddf, pdf):  # DM-01..08
    linear = pytest.importorskip("sklearn.linear_model")
    fitted = linear.LogisticRegression().fit(pdf[["a", "b"]], pdf.i % 2 == 0)
    pred = ddf.infer.predict(fitted, output="y")
    assert pred["y"].compute().tolist() == fitted.predict(pdf[["a", "b"]]).tolist()
    proba = ddf.infer.predict(fitted, method="predict_proba", output=["no", "yes"])
    near(proba[["no", "yes"]].compute(), fitted.predict_proba(pdf[["a", "b"]]))
    with pytest.raises((ModelLoadError, AttributeError), match="transform"):
        ddf.infer.predict(fitted, method="transform")


def test_pipelines_with_text_classes(ddf, pdf):
    pipeline = pytest.importorskip("sklearn.pipeline")
    from sklearn.preprocessing import StandardScaler
    from sklearn.tree import DecisionTreeClassifier

    names = pdf.i.map(lambda i: f"class {i}")
    fitted = pipeline.make_pipeline(StandardScaler(), DecisionTreeClassifier())
    fitted.fit(pdf[["a", "b"]], names)
    pred = ddf.infer.predict(fitted)
    assert pred["prediction"].compute().tolist() == names.tolist()


def test_missing_and_corrupt_files(ddf, tmp_path):
    with pytest.raises(ModelLoadError, match=r"gone\.pt2"):
        ddf.infer.predict(tmp_path / "gone.pt2", columns=["a", "b"])
    (tmp_path / "bad.pt2").write_bytes(b"no zip")
    with pytest.raises(ModelLoadError, match=r"bad\.pt2"):
        ddf.infer.predict(tmp_path / "bad.pt2", columns=["a", "b"])


def test_a_compiled_module_runs(ddf, pdf):  # DI-23
    compiled = torch.compile(Sum(), backend="eager")
    pred = ddf.infer.predict(compiled, columns=["a", "b"])
    near(pred["prediction"].compute(), pdf.a + pdf.b)


def test_half_precision(ddf, pdf):
    model = torch.nn.Linear(2, 1)
    full = ddf.infer.predict(model, columns=["a", "b"])
    half = ddf.infer.predict(model, columns=["a", "b"], dtype="bfloat16")
    assert half["prediction"].dtype == "float32"
    difference = (full["prediction"] - half["prediction"]).abs().compute()
    assert 0 < difference.max() < 0.1


def test_out_of_memory_halves_the_batch(ddf, pdf, caplog):  # DI-09
    class Tight(torch.nn.Module):
        def forward(self, x):
            if not isinstance(x, torch._subclasses.FakeTensor) and len(x) > 4:
                raise MemoryError
            return x.sum(dim=1)

    pred = ddf.infer.predict(Tight(), columns=["a", "b"])
    near(pred["prediction"].compute(), pdf.a + pdf.b)
    assert len([r for r in caplog.records if "ran out of memory" in r.message]) == 1


def test_out_of_memory_at_one_row_is_an_error(ddf):  # DI-10
    class Full(torch.nn.Module):
        def forward(self, x):
            if not isinstance(x, torch._subclasses.FakeTensor):
                raise MemoryError
            return x.sum(dim=1)

    pred = ddf.infer.predict(Full(), columns=["a", "b"])
    with pytest.raises(dask_infer.PartitionError, match="one row does not fit"):
        pred.compute()


def test_a_failing_model_says_where(ddf):
    def broken(x):
        raise KeyError("lookup")

    pred = ddf.infer.predict(broken, columns="a", meta="float32")
    with pytest.raises(
        dask_infer.PartitionError, match=r'"broken" failed in forward.*KeyError'
    ):
        pred.compute()


def test_a_hanging_forward_is_left(ddf):  # BM-23
    def hang(x):
        import time

        time.sleep(3)
        return x

    pred = ddf.infer.predict(hang, columns="a", meta="float32", timeout="0.1s")
    with pytest.raises(dask_infer.PartitionError, match=r"did not end within 0\.1 s"):
        pred.compute()


def test_a_model_may_reuse_the_memory_of_its_output(ddf, pdf):
    class Reuses:
        def __init__(self):
            self.buffer = np.empty(100, "float32")

        def __call__(self, x):
            return np.multiply(x, 2, out=self.buffer[: len(x)])

    pred = ddf.infer.predict(Reuses, columns="a", meta="float32", batch_size=3)
    near(pred["prediction"].compute(), 2 * pdf.a)


def test_a_third_parameter_with_a_default_is_the_users(ddf, pdf):
    def postprocess(output, frame, factor=3.0):
        return output * factor

    pred = ddf.infer.predict(Sum(), columns=["a", "b"], postprocess=postprocess)
    near(pred["prediction"].compute(), 3 * (pdf.a + pdf.b))


@pytest.mark.parametrize(
    "request_of",
    [
        lambda n: {"preprocess": lambda frame: np.ones((len(frame), n), "float32")},
        lambda n: {"postprocess": lambda output, frame: output * n},
        lambda n: {"call_kwargs": {"times": n}},
    ],
    ids=["preprocess", "postprocess", "call_kwargs"],
)
def test_batch_sizes_are_learned_for_one_request(ddf, request_of):
    class SumsTimes(torch.nn.Module):
        def forward(self, x, times=1):
            return x.sum(1) * times

    for n in (2, 3):
        pred = ddf.infer.predict(
            SumsTimes(), columns=["a", "b"], meta="float32", **request_of(n)
        )
        pred.compute(scheduler="sync")
    (replica,) = (r for r in cache.replicas() if r.spec.name == "SumsTimes")
    assert len(replica.sizes.policies()) == 2
    cache.unload(replica.key.content)


def test_a_given_batch_size_that_did_not_fit_is_remembered(ddf):  # DI-09
    class Tight(torch.nn.Module):
        calls = ()

        def forward(self, x):
            if isinstance(x, torch._subclasses.FakeTensor):
                return x.sum(dim=1)
            Tight.calls = (*Tight.calls, len(x))
            if len(x) > 4:
                raise MemoryError
            return x.sum(dim=1) * 0 + len(Tight.calls)

    pred = ddf.infer.predict(Tight(), columns=["a", "b"], batch_size=8)
    calls = pred["prediction"].compute().max()
    # 8 rows once, then 13, 13, 12 and 12 rows by fours: every size is tried once.
    assert calls <= 1 + 4 * 4


@pytest.mark.parametrize("keep", [True, False, ["a"]])
def test_the_name_of_the_columns_stays(keep):
    pdf = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]})
    pdf.columns.name = "feature"
    ddf = dd.from_pandas(pdf, npartitions=2)
    pred = ddf.infer.predict(lambda x: x.sum(1), meta="float64", keep=keep)
    for each in (pred, pred[["prediction"]]):
        assert each.compute(scheduler="sync").columns.name == "feature"
