"""Tensor columns in Dask, and in processes that never imported this package."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from dask.dataframe.dispatch import from_pyarrow_table_dispatch, make_meta
from dask.dataframe.utils import assert_eq
from dask.sizeof import sizeof
from distributed import Client

from dask_infer._dask import register_tensor_dtype
from dask_infer.batch.tensor.lists import to_dense, to_ragged
from dask_infer.batch.tensor.tensor_array import TensorArray, TensorDtype

register_tensor_dtype(TensorArray, TensorDtype)

ROWS = 24
KINDS = ("vector", "image", "tokens", "missing", "mask")
METHODS = ("tasks", "disk")


def tensors(kind: str) -> TensorArray:
    random = np.random.default_rng(1)
    if kind == "image":
        return TensorArray.from_numpy(random.integers(0, 9, (ROWS, 2, 3), "uint8"))
    if kind == "mask":
        return TensorArray.from_numpy(random.random((ROWS, 3)) > 0.5)
    if kind == "tokens":
        lengths = random.integers(0, 4, ROWS)
        offsets = np.append(0, np.cumsum(lengths))
        return TensorArray.from_ragged(np.arange(offsets[-1]), offsets)
    vectors = random.normal(size=(ROWS, 5)).astype("float32")
    missing = np.arange(ROWS) % 3 == 0 if kind == "missing" else None
    return TensorArray.from_numpy(vectors, missing)


@pytest.fixture(params=KINDS)
def frame(request: pytest.FixtureRequest) -> pd.DataFrame:
    ids = np.random.default_rng(0).permutation(ROWS)
    columns = {"id": ids, "key": ids % 3, "emb": tensors(request.param)}
    return pd.DataFrame(columns)


@pytest.fixture
def ddf(frame: pd.DataFrame) -> dd.DataFrame:
    return dd.from_pandas(frame, npartitions=3)


def check(result: dd.DataFrame, expected: pd.DataFrame) -> None:
    """Rows by `id`, whatever order a shuffle left them in; meta has the dtype."""
    assert result._meta.emb.dtype == expected.emb.dtype
    computed = result.compute()
    pd.testing.assert_frame_equal(by_id(computed), by_id(expected))


def by_id(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sort_values("id").reset_index(drop=True)


@pytest.mark.parametrize("method", METHODS)
def test_shuffle(frame: pd.DataFrame, ddf: dd.DataFrame, method: str) -> None:
    check(ddf.shuffle("key", shuffle_method=method), frame)


def other() -> dd.DataFrame:
    ids = range(-2, ROWS, 2)
    return dd.from_pandas(pd.DataFrame({"id": ids, "z": 1.0}), npartitions=2)


@pytest.mark.parametrize("how", ["inner", "left", "right"])
def test_merge(frame: pd.DataFrame, ddf: dd.DataFrame, how: str) -> None:
    merged = ddf.merge(other(), on="id", how=how, shuffle_method="tasks")
    check(merged, frame.merge(other().compute(), on="id", how=how))


@pytest.mark.parametrize("method", METHODS)
def test_set_index(frame: pd.DataFrame, ddf: dd.DataFrame, method: str) -> None:
    indexed = ddf.set_index("id", shuffle_method=method)
    assert indexed.known_divisions
    check(indexed.reset_index(), frame)


def test_p2p(threaded_client: Client) -> None:
    for kind in KINDS:
        frame = pd.DataFrame({"id": np.arange(ROWS)[::-1], "emb": tensors(kind)})
        ddf = dd.from_pandas(frame, npartitions=3)
        with dask.config.set({"dataframe.shuffle.method": "p2p"}):
            check(ddf.shuffle("id"), frame)
            check(ddf.set_index("id").reset_index(), frame)
            right = other().compute()
            merged = ddf.merge(other(), on="id", how="right")
            check(merged, frame.merge(right, on="id", how="right"))


def test_sort_values_of_another_column(frame: pd.DataFrame, ddf: dd.DataFrame) -> None:
    computed = ddf.sort_values("id").compute()
    expected = frame.sort_values("id")
    pd.testing.assert_frame_equal(computed, expected)


@pytest.mark.parametrize(
    "use",
    [
        lambda f: f[f.id > 5],
        lambda f: f.assign(z=f.id * 2),
        lambda f: f.loc[3:15],
        lambda f: f.dropna(subset=["emb"]),
        lambda f: f.reset_index(),
        lambda f: f.merge(f[["id"]], on="id"),
    ],
    ids=["filter", "assign", "loc", "dropna", "reset_index", "self-merge"],
)
def test_partitionwise_work(frame: pd.DataFrame, ddf: dd.DataFrame, use) -> None:
    check(use(ddf), use(frame))


def test_repartition_persist_and_head(frame: pd.DataFrame, ddf: dd.DataFrame) -> None:
    check(ddf.repartition(npartitions=2), frame)
    check(ddf.persist(scheduler="sync"), frame)
    pd.testing.assert_frame_equal(ddf.head(3), frame.head(3))
    pd.testing.assert_frame_equal(ddf.tail(3), frame.tail(3))


def test_map_partitions_infers_meta(frame: pd.DataFrame, ddf: dd.DataFrame) -> None:
    check(ddf.map_partitions(lambda part: part.iloc[:]), frame)


def test_astype(ddf: dd.DataFrame) -> None:
    dtype = ddf._meta.emb.dtype
    wider = TensorDtype("float64", dtype.shape)
    cast = ddf.astype({"emb": wider})
    assert cast._meta.emb.dtype == cast.compute().emb.dtype == wider


def test_concat(frame: pd.DataFrame, ddf: dd.DataFrame) -> None:
    twice = dd.concat([ddf, ddf])
    assert twice._meta.emb.dtype == frame.emb.dtype
    pd.testing.assert_frame_equal(twice.compute(), pd.concat([frame, frame]))


def test_concat_with_frames_that_lack_the_column(ddf: dd.DataFrame) -> None:
    both = dd.concat([ddf[["id"]], ddf])
    computed = both.compute()
    assert both._meta.emb.dtype == computed.emb.dtype == ddf._meta.emb.dtype
    assert computed.emb.iloc[:ROWS].isna().all()


def test_concat_with_object_columns_is_object(ddf: dd.DataFrame) -> None:
    both = dd.concat([ddf, ddf.astype({"emb": object})])
    computed = both.compute()
    assert both._meta.emb.dtype == computed.emb.dtype == object
    restored = computed.emb.astype(ddf._meta.emb.dtype)
    assert restored.iloc[:ROWS].equals(restored.iloc[ROWS:])


def test_first_of_a_group(frame: pd.DataFrame, ddf: dd.DataFrame) -> None:
    first = ddf.groupby("key").first()
    expected = frame.groupby("key").first()
    assert first._meta.emb.dtype == frame.emb.dtype
    pd.testing.assert_frame_equal(first.compute(), expected)


def test_meta_has_no_rows_and_synthetic_rows_have_the_dtype(ddf: dd.DataFrame) -> None:
    dtype = ddf._meta.emb.dtype
    assert make_meta(("emb", dtype)).dtype == dtype
    assert make_meta({"emb": dtype}).emb.dtype == dtype
    synthetic = ddf._meta_nonempty.emb
    assert synthetic.dtype == dtype
    assert len(synthetic) == 2
    assert_eq(ddf, ddf.compute())


def test_tokens_go_by_content(frame: pd.DataFrame) -> None:
    token = dask.base.tokenize
    with dask.config.set({"tokenize.ensure-deterministic": True}):
        assert token(frame) == token(frame.copy()) == token(reloaded(frame))
        assert token(frame) != token(frame.assign(emb=frame.emb.shift(1)))
        dtype = frame.emb.dtype
        assert token(dtype) == token(reloaded(dtype))
        assert token(dtype) != token(TensorDtype("float16", dtype.shape))


def reloaded(value: object) -> object:
    return pickle.loads(pickle.dumps(value))


def test_dask_sees_the_size_of_a_slice_alone() -> None:
    array = TensorArray.from_numpy(np.zeros((1000, 1000), "float32"))
    series = pd.Series(array, copy=False)
    assert 4e6 < sizeof(series) < 4.1e6
    assert sizeof(series.iloc[:10]) < 50_000
    assert sizeof(series.to_frame()) > 4e6


def test_registering_again_changes_nothing() -> None:
    reader = from_pyarrow_table_dispatch.dispatch(pd.DataFrame)
    register_tensor_dtype(TensorArray, TensorDtype)
    assert from_pyarrow_table_dispatch.dispatch(pd.DataFrame) is reader


#: What a reader does who has neither this package nor its dtype.
STRANGER = """
import pickle, sys
import dask.dataframe as dd, pandas as pd
place = sys.argv[1]
ddf = dd.read_parquet(place)
frames = {
    "pandas": pd.read_parquet(place),
    "dask": ddf.compute(),
    "arrow": pd.read_parquet(place, dtype_backend="pyarrow"),
}
assert ddf._meta.emb.dtype == frames["pandas"].emb.dtype == object
assert not any(name.startswith("dask_infer") for name in sys.modules)
with open(sys.argv[2], "wb") as file:
    pickle.dump(frames, file)
"""


def strangers(place: Path) -> dict[str, pd.DataFrame]:
    found = place.with_suffix(".pkl")
    command = [sys.executable, "-c", STRANGER, str(place), str(found)]
    subprocess.run(command, check=True, cwd=place.parent)
    return pickle.loads(found.read_bytes())


def test_parquet_is_read_by_those_who_never_imported_us(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": range(ROWS), "emb": tensors("vector")})
    for kind in KINDS:
        frame[kind] = tensors(kind)
    dd.from_pandas(frame, npartitions=2).to_parquet(tmp_path / "frame")
    for read in strangers(tmp_path / "frame").values():
        np.testing.assert_array_equal(to_dense(read.emb), to_dense(frame.emb))
        np.testing.assert_array_equal(to_dense(read.missing), to_dense(frame.missing))
        np.testing.assert_array_equal(to_dense(read.image), to_dense(frame.image))
        got, expected = to_ragged(read.tokens), to_ragged(frame.tokens)
        np.testing.assert_array_equal(got.values, expected.values)
        np.testing.assert_array_equal(got.offsets, expected.offsets)
        for kind in KINDS:
            tensor = read[kind].astype(frame[kind].dtype)
            assert tensor.array.equals(frame[kind].array)


def test_parquet_is_read_by_ourselves(ddf: dd.DataFrame, tmp_path: Path) -> None:
    ddf.to_parquet(tmp_path / "dask")
    ddf.compute().to_parquet(tmp_path / "pandas.parquet")
    dtype = ddf._meta.emb.dtype
    for place in ("dask", "pandas.parquet"):
        back = dd.read_parquet(tmp_path / place)
        assert back._meta.emb.dtype == object
        check(back.astype({"emb": dtype}), ddf.compute())


def test_parquet_holds_plain_lists(tmp_path: Path) -> None:
    frame = pd.DataFrame({"image": tensors("image"), "tokens": tensors("tokens")})
    frame.to_parquet(tmp_path / "frame.parquet")
    schema = pa.parquet.read_schema(tmp_path / "frame.parquet")
    assert pa.types.is_fixed_size_list(schema.field("image").type)
    assert pa.types.is_large_list(schema.field("tokens").type)
    assert b"tensor[" not in schema.metadata[b"pandas"]
