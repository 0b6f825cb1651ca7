"""What a row's output is, in whatever batch: API section 4, rows and fields."""

from __future__ import annotations

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from torch import nn

from dask_infer import OutputError

N = 9
X = np.arange(N, dtype="float64") / 4


@pytest.fixture(autouse=True)
def in_this_process():
    with dask.config.set(scheduler="sync"):
        yield


def frame(partitions=1):
    return dd.from_pandas(pd.DataFrame({"x": X}), npartitions=partitions)


#: Cuts into partitions and batches: remainders of one row, batches of one and of two,
#: partitions of one row, and one batch of all.
CUTS = [(1, 8), (1, 1), (4, 2), (N, "auto"), (1, "auto")]


def predictions(model, cut, on_error="raise", **options):
    partitions, batch_size = cut
    options = {"columns": "x", "keep": False} | options
    pred = frame(partitions).infer.predict(
        model, batch_size=batch_size, on_error=on_error, **options
    )
    result = pred.compute()
    assert result.dtypes.to_dict() == pred.dtypes.to_dict()
    return result


# --- a batch of one row --------------------------------------------------------------


class Squeezed(nn.Module):
    """Linear layers give way to plain arithmetic, so that every batch is exact."""

    def __init__(self, *shape):
        super().__init__()
        self.shape = shape

    def forward(self, x):
        ones = torch.ones(self.shape, device=x.device)
        return (x.reshape(-1, *[1] * len(self.shape)) * ones).squeeze()


@pytest.mark.parametrize("on_error", ["raise", "null"])
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("shape", [(1,), (3,), (1, 3), (2, 1, 3), (1, 1)])
def test_a_module_that_squeezes(shape, cut, on_error):  # ZO-1
    result = predictions(Squeezed(*shape), cut, on_error)["prediction"]
    row = np.ones(shape).squeeze()
    expected = np.multiply.outer(X, row).astype("float32")
    found = result.to_numpy() if row.ndim == 0 else np.stack(list(result))
    np.testing.assert_array_equal(found, expected)


SQUEEZES = {
    "array": lambda x: np.squeeze(x[:, None]),
    "scalar": lambda x: np.squeeze(x[:, None])[()],
    "list": lambda x: np.squeeze(x[:, None]).tolist(),
    "tensor": lambda x: torch.from_numpy(x[:, None]).squeeze(),
    "dict": lambda x: {"prediction": np.squeeze(x[:, None])},
    "another name": lambda x: {"score": np.squeeze(x[:, None])},
    "tuple": lambda x: (np.squeeze(x[:, None]),),
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("kind", SQUEEZES)
def test_a_callable_that_squeezes(kind, cut):  # ZO-1
    result = predictions(SQUEEZES[kind], cut, meta="float64")
    assert result["prediction"].tolist() == X.tolist()


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(
    "model",
    [
        lambda x: (np.squeeze(x[:, None]), np.squeeze(-x[:, None])),
        lambda x: {"q": np.squeeze(-x[:, None]), "p": np.squeeze(x[:, None])},
        lambda x: np.squeeze(np.stack([x, -x], axis=1)),
        lambda x: np.squeeze(np.stack([x, -x], axis=1)).tolist(),
        lambda x: torch.from_numpy(np.stack([x, -x], axis=1)).squeeze(),
    ],
)
def test_columns_of_a_model_that_squeezes(model, cut):  # ZO-1
    result = predictions(model, cut, meta={"p": "float64", "q": "float64"})
    assert (result["p"].tolist(), result["q"].tolist()) == (X.tolist(), (-X).tolist())


LISTS = {"p": pd.ArrowDtype(pa.list_(pa.float64()))}


def lists_in_a_frame(x):
    rows = [None if v == 1 else [v, -v] for v in x]
    return pd.DataFrame({"p": pd.Series(rows, dtype=object)})


def check_lists(found):
    rows = [None if row is pd.NA else row.tolist() for row in found["p"]]
    assert rows == [None if v == 1 else [v, -v] for v in X.tolist()]


@pytest.mark.parametrize("cut", CUTS)
def test_lists_in_a_frame(cut):  # ZO-1
    check_lists(predictions(lists_in_a_frame, cut, meta=LISTS))


def test_lists_in_a_frame_on_a_cluster(client):  # ZO-1
    pred = frame(2).infer.predict(
        lists_in_a_frame, columns="x", keep=False, meta=LISTS, batch_size=4
    )
    check_lists(client.compute(pred).result())


# --- rows or fields ------------------------------------------------------------------


@pytest.mark.parametrize("cut", [*CUTS, (1, 3)])
@pytest.mark.parametrize(
    "model",
    [
        lambda x: [np.array([v, -v]) for v in x],
        lambda x: [torch.tensor([v, -v]) for v in x],
        lambda x: [(v, -v) for v in x],
        lambda x: [[v, -v] for v in x],
        lambda x: [{"p": v, "q": -v} for v in x],
        lambda x: [{"q": torch.tensor(-v), "p": torch.tensor(v)} for v in x],
        lambda x: (x, -x),
        lambda x: (list(x), list(-x)),
        lambda x: pd.DataFrame({"q": -x, "p": x}),
        lambda x: pd.DataFrame(np.stack([x, -x], axis=1)),
        lambda x: {"any": np.stack([x, -x], axis=1)},
    ],
)
def test_two_columns_in_any_structure_and_batch(model, cut):  # ZO-2
    result = predictions(model, cut, meta={"p": "float64", "q": "float64"})
    assert (result["p"].tolist(), result["q"].tolist()) == (X.tolist(), (-X).tolist())


MAP = pd.ArrowDtype(pa.map_(pa.string(), pa.int64()))


def rows_of(odd, even):
    return lambda x: [odd if 4 * v % 2 else even for v in x]


@pytest.mark.parametrize("on_error", ["raise", "null"])
@pytest.mark.parametrize("cut", CUTS)
def test_what_a_row_leaves_out_is_missing_in_every_batch(cut, on_error):
    model = rows_of({"p": 1.0}, {"p": 1.0, "q": 2.0})
    meta = {"p": "float64", "q": "float64"}
    result = predictions(model, cut, on_error, meta=meta)
    assert result["p"].tolist() == [1.0] * N
    assert result["q"].isna().tolist() == [bool(k % 2) for k in range(N)]
    model = rows_of({"other": 1.0}, {"p": 1.0, "other": 1.0})
    with pytest.raises(OutputError, match=r"'p' promised, .* in 'other'"):
        predictions(model, cut, on_error, meta={"p": "float64"})


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("meta", [MAP, object])
def test_mappings_of_any_keys_are_values(meta, cut):
    result = predictions(rows_of({"a": 1}, {"b": 2}), cut, meta={"words": meta})
    found = [dict(row) for row in result["words"]]
    assert found == [{"a": 1} if k % 2 else {"b": 2} for k in range(N)]
    result = predictions(rows_of({"a": 1}, {"words": 2}), cut, meta={"words": MAP})
    assert [dict(row) for row in result["words"]][:2] == [{"words": 2}, {"a": 1}]


@pytest.mark.parametrize("cut", CUTS)
def test_rows_of_tuples_keep_each_columns_dtype(cut):
    result = predictions(
        lambda x: [(str(v), v) for v in x], cut, meta={"s": "string", "v": "float64"}
    )
    assert result["s"].tolist() == [str(v) for v in X]
    assert result["v"].tolist() == X.tolist()


class Fields(nn.Module):
    def forward(self, x):
        return [x, torch.stack([x, -x], dim=1)]


class Rows(nn.Module):
    def forward(self, x):
        return [torch.stack([v, -v]) for v in x]


@pytest.mark.parametrize("cut", CUTS)
def test_a_list_of_a_module_is_what_its_shapes_say(cut):
    fields = predictions(Fields(), cut, output=["a", "b"])
    assert fields["a"].tolist() == X.tolist()
    assert [row.tolist() for row in fields["b"]] == [[v, -v] for v in X]
    rows = predictions(Rows(), cut, output=["p", "q"])
    assert (rows["p"].tolist(), rows["q"].tolist()) == (X.tolist(), (-X).tolist())


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("declared", [False, True])
def test_a_list_of_an_estimator_has_an_array_a_target(declared, batch_size):
    multioutput = pytest.importorskip("sklearn.multioutput")
    tree = pytest.importorskip("sklearn.tree").DecisionTreeClassifier()
    targets = np.stack([X > 1, X > 0.5], axis=1)
    model = multioutput.MultiOutputClassifier(tree).fit(X[:, None], targets)
    meta = dict.fromkeys("ab", "tensor[float64, (2,)]") if declared else None
    result = predictions(
        model,
        (1, batch_size),
        columns=["x"],
        method="predict_proba",
        output=["a", "b"],
        meta=meta,
    )
    assert [row.tolist() for row in result["a"]] == [[x <= 1, x > 1] for x in X]
    assert [row.tolist() for row in result["b"]] == [[x <= 0.5, x > 0.5] for x in X]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_list_of_columns_is_refused_with_the_remedy(batch_size):
    with pytest.raises(OutputError, match="a list has a row an entry, a tuple a col"):
        predictions(lambda x: [x, -x, x], (1, batch_size), meta="float64")


# --- detections ----------------------------------------------------------------------


def boxes_of(v):
    count = int(4 * v) % 4
    return {
        "boxes": torch.full((count, 4), float(v)),
        "labels": torch.full((count,), int(v)),
    }


DETECTIONS = {"boxes": "tensor[float32, (None, 4)]", "labels": "tensor[int64, (None,)]"}


@pytest.mark.parametrize("on_error", ["raise", "null"])
@pytest.mark.parametrize("cut", [*CUTS, (1, 4)])
@pytest.mark.parametrize("batch", [list, tuple], ids=["a row", "a column"])
def test_detections(batch, cut, on_error):  # ZO-6
    def model(x):
        rows = [boxes_of(v) for v in x]
        if batch is list:
            return rows
        return [row["boxes"] for row in rows], [row["labels"] for row in rows]

    result = predictions(model, cut, on_error, meta=DETECTIONS)
    for v, boxes, labels in zip(X, result["boxes"], result["labels"], strict=True):
        np.testing.assert_array_equal(boxes, boxes_of(v)["boxes"])
        np.testing.assert_array_equal(labels, boxes_of(v)["labels"])


@pytest.mark.parametrize("cut", [*CUTS, (1, 4)])
@pytest.mark.parametrize("kind", [np.array, torch.tensor])
@pytest.mark.parametrize("meta", ["tensor[float64, (None,)]", "object"])
def test_an_array_a_row_of_its_own_length(meta, kind, cut):  # ZO-6
    result = predictions(lambda x: [kind([v] * int(v)) for v in x], cut, meta=meta)
    for v, row in zip(X, result["prediction"], strict=True):
        assert isinstance(row, np.ndarray)
        np.testing.assert_array_equal(row, [v] * int(v))


@pytest.mark.parametrize("cut", CUTS)
def test_lists_of_arrays_a_row(cut):  # ZO-6
    meta = pd.ArrowDtype(pa.list_(pa.list_(pa.float64())))

    def model(x):
        return [[np.array([v]), torch.tensor([v, -v])] for v in x]

    result = predictions(model, cut, meta=meta)["prediction"]
    assert result.dtype == meta
    assert pa.array(result).to_pylist() == [[[v], [v, -v]] for v in X]


# --- structure is no row's fault -----------------------------------------------------

BROKEN = {
    "too few rows": lambda x: np.array([x.mean()]),
    "too many rows": lambda x: np.repeat(x, 2),
    "no rows": lambda x: x.mean(),
    "a field missing": lambda x: {"q": x, "r": x},
    "another shape": lambda x: np.stack([x, x, x], axis=1),
    "another dtype": lambda x: np.array([str(v) for v in x]),
    "nothing": lambda x: None,
}


@pytest.mark.parametrize("on_error", ["raise", "null", "quarantine"])
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_structure_raises_under_every_on_error(kind, on_error):  # ZO-2
    with pytest.raises(OutputError):
        predictions(BROKEN[kind], (1, "auto"), on_error, meta="float64")


def test_one_bad_row_does_not_excuse_a_wrong_number_of_rows():  # ZO-2
    def model(x):
        return x[x != 1.0]

    with pytest.raises(OutputError, match="8 rows for a batch of 9"):
        predictions(model, (1, "auto"), "null", meta="float64")


def test_a_value_that_does_not_fit_is_its_rows():
    def model(x):
        return (4 * x).astype("int64") * 30

    result = predictions(model, (1, 8), "quarantine", meta="int8")
    fits = 120 * X <= 127
    assert result["prediction"].notna().tolist() == fits.tolist()
    assert "values that do not fit" in result["infer_error"].iloc[-1]


def test_a_broken_structure_on_a_cluster(client):  # ZO-2, ZO-8
    for kind, model in BROKEN.items():
        for on_error in ("raise", "quarantine"):
            pred = frame().infer.predict(
                model, columns="x", meta="float64", on_error=on_error
            )
            with pytest.raises(OutputError):
                client.compute(pred).result()
                pytest.fail(kind)


# --- padding -------------------------------------------------------------------------

TEXTS = ["a b c", "a", "a b", "a b c d", "", "a b c d e"]


def word_ids(texts):
    return {
        "input_ids": [
            [len(word) + i for i, word in enumerate(t.split())] for t in texts
        ]
    }


def padded_to_five(texts):
    """A tokenizer that pads to one length, whatever it is given."""
    ids = word_ids(texts)["input_ids"]
    mask = [[1] * len(row) + [0] * (5 - len(row)) for row in ids]
    return {
        "input_ids": np.array([row + [0] * (5 - len(row)) for row in ids]),
        "attention_mask": np.array(mask),
    }


def texts(partitions=1):
    return dd.from_pandas(pd.DataFrame({"t": TEXTS}), npartitions=partitions)


def three_logits(input_ids, attention_mask):
    total = (input_ids * attention_mask).sum(axis=1)
    return np.stack([total, total + 1, total + 2], axis=1).astype("float32")


def a_value_a_token(input_ids, attention_mask):
    return (2 * input_ids).astype("float32")


@pytest.mark.parametrize("batch_size", [1, 2, 3, 6])
@pytest.mark.parametrize("partitions", [1, 3, 6])
@pytest.mark.parametrize(
    "meta", ["tensor[float32, (None,)]", pd.ArrowDtype(pa.list_(pa.float32())), object]
)
@pytest.mark.parametrize("model", [three_logits, a_value_a_token])
@pytest.mark.parametrize("tokenizer", [word_ids, padded_to_five])
def test_only_an_axis_that_follows_the_tokens_is_cut(
    tokenizer, model, meta, partitions, batch_size
):
    pred = texts(partitions).infer.predict(
        model,
        columns="t",
        tokenizer=tokenizer,
        meta=meta,
        batch_size=batch_size,
        batch_tokens=None,
    )
    for text, row in zip(TEXTS, pred.compute()["prediction"], strict=True):
        (ids,) = word_ids([text])["input_ids"]
        if model is three_logits:
            expected = [sum(ids), sum(ids) + 1, sum(ids) + 2]
        else:
            expected = [2 * i for i in ids]
        assert np.asarray(row).tolist() == expected, text


# --- dtypes and memory ---------------------------------------------------------------

STRUCT = pa.struct([("v", pa.float64()), ("tags", pa.list_(pa.string()))])


@pytest.mark.parametrize("on_error", ["raise", "null"])
@pytest.mark.parametrize(
    "arrow, row",
    [
        (STRUCT, lambda v: {"v": v, "tags": [str(v)]}),
        (pa.list_(STRUCT), lambda v: [{"v": v, "tags": []}] * (int(v) % 3)),
        (pa.map_(pa.string(), pa.float64()), lambda v: [("v", v)]),
        (pa.decimal128(12, 2), lambda v: pa.scalar(v).cast(pa.decimal128(12, 2))),
        (pa.list_(pa.string()), lambda v: [str(v)]),
    ],
)
def test_a_declared_arrow_dtype_is_kept_and_written(arrow, row, on_error, tmp_path):
    def model(x):
        return [row(v) for v in x]

    pred = frame(3).infer.predict(
        model,
        columns="x",
        output="y",
        meta=pd.ArrowDtype(arrow),
        on_error=on_error,
        keep=False,
    )
    assert pred["y"].dtype == pd.ArrowDtype(arrow)
    assert pred.compute()["y"].dtype == pd.ArrowDtype(arrow)
    pred.to_parquet(tmp_path)
    written = pa.parquet.read_table(tmp_path)["y"]
    expected = [getattr(row(v), "as_py", lambda v=v: row(v))() for v in X]
    assert written.cast(arrow).to_pylist() == expected


class Buffered(nn.Module):
    """Fills one output buffer, kept from its first forward."""

    buffer = None

    def forward(self, x):
        if self.buffer is None:
            self.buffer = torch.empty(4)
        return torch.mul(x, 2, out=self.buffer)


def test_results_are_not_the_buffer_of_the_model():  # ZO-5
    ddf = dd.from_pandas(pd.DataFrame({"x": np.arange(12.0)}), npartitions=3)
    pred = ddf.infer.predict(Buffered(), columns="x", meta="float32")
    assert pred.compute()["prediction"].tolist() == (2 * np.arange(12.0)).tolist()


def test_columns_share_no_memory():
    result = predictions(
        lambda x: {"raw": x, "score": x},
        (1, "auto"),
        meta={"raw": "float64", "score": "float64"},
    )
    assert not np.shares_memory(result["raw"], result["score"])


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("meta", ["tensor[float64, (2,)]", "ragged", "object", "a, b"])
def test_sparse_results(meta, cut):
    sparse = pytest.importorskip("scipy.sparse")

    def model(x):
        return sparse.csr_matrix(np.stack([x, -x], axis=1))

    if meta == "a, b":
        result = predictions(model, cut, meta={"a": "float64", "b": "float64"})
        assert result["b"].tolist() == (-X).tolist()
        return
    if meta == "ragged":
        meta = pd.ArrowDtype(pa.list_(pa.float64()))
    rows = predictions(model, cut, meta=meta)["prediction"]
    assert [list(row) for row in rows] == [[v, -v] for v in X]


class Noted(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.weight.factor = factor

    def forward(self, x):
        return x * self.weight * self.weight.factor


@pytest.mark.parametrize("dtype", [None, "float64"])
def test_what_is_noted_on_weights_is_part_of_the_model(dtype):
    model = Noted(2.0)
    for factor in (2.0, 3.0):
        model.weight.factor = factor
        found = predictions(model, (1, 8), dtype=dtype)
        np.testing.assert_allclose(found["prediction"], X * factor, rtol=1e-6)
