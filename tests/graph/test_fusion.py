"""Predictions fused with their neighbours: tasks counted, sources read once."""

import collections
import pickle

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dask_infer  # noqa: F401
from dask_infer.graph.expr import Predict

PARTS, ROWS = 4, 20


class Source:
    """Makes partitions and counts how often each is made."""

    def __init__(self):
        self.made = collections.Counter()

    def __call__(self, part):
        self.made[part] += 1
        ids = np.arange(part * ROWS, (part + 1) * ROWS)
        return pd.DataFrame({"id": ids, "a": ids % 7 - 3.0, "b": ids % 5 - 2.0})

    def __dask_tokenize__(self):
        return id(self)


META = Source()(0).iloc[:0]


class Run:
    """Scheduler that remembers which tasks its last call had to run."""

    def __call__(self, expr, keys, **kwargs):
        graph = dask._task_spec.convert_legacy_graph(expr.__dask_graph__())
        self.tasks, stack = collections.Counter(), list(dask.core.flatten([keys]))
        seen = set()
        while stack:
            if (key := stack.pop()) not in seen:
                seen.add(key)
                self.tasks[key[0].rpartition("-")[0]] += 1
                stack += graph[key].dependencies
        return dask.get(graph, keys)


def read(source):
    with dask.config.set({"dataframe.convert-string": False}):
        return dd.from_map(source, range(PARTS), label="source", meta=META)


def whole_frame():
    return pd.concat([Source()(part) for part in range(PARTS)], ignore_index=True)


def model(block):
    return block.sum(axis=1)


def predict(frame, output="p", columns=("a", "b")):
    options = {"columns": list(columns), "output": output, "meta": "float64"}
    return frame.infer.predict(model, **options)


@pytest.fixture
def run():
    scheduler = Run()
    with dask.config.set(scheduler=scheduler):
        yield scheduler


@pytest.fixture
def source():
    return Source()


@pytest.fixture
def rows(source):
    return read(source)


@pytest.fixture
def expected():
    whole = whole_frame()
    return whole.assign(p=whole.a + whole.b)


def once(source):
    return source.made == dict.fromkeys(range(PARTS), 1)


def test_compute_is_one_task_a_partition(run, rows, source, expected):
    result = predict(rows).compute()
    assert result.p.to_list() == expected.p.to_list()
    assert run.tasks == {"source-predictmodel": PARTS, "repartitiontofewer": 1}
    assert once(source)


@pytest.mark.parametrize("write_index", [True, False])
def test_a_write_is_in_the_task_of_its_prediction(
    run, rows, source, expected, tmp_path, write_index
):
    predict(rows).to_parquet(tmp_path, write_index=write_index)
    assert sorted(run.tasks.values()) == [1, PARTS]
    assert once(source)
    assert pd.read_parquet(tmp_path).p.to_list() == expected.p.to_list()


def test_the_name_shows_the_prediction(run, rows):
    pred = predict(rows)
    pred = pred[pred.p > 0].assign(c=1).rename(columns={"p": "q"})
    pred.compute()
    assert "source-fused-predictmodel-operation" in run.tasks


def test_persist_is_one_task_a_partition(run, rows, source, expected):
    (one,) = dask.persist(predict(rows)[["id", "p"]])
    assert run.tasks == {"source-predictmodel": PARTS}
    assert one.compute().p.to_list() == expected.p.to_list()
    predict(rows).persist()
    assert sum(run.tasks.values()) == PARTS


def test_what_others_read_is_run_once(run, rows, source, expected):
    total, low = dask.compute(predict(rows).p.sum(), rows.a.min())
    assert (total, low) == (expected.p.sum(), expected.a.min())
    assert run.tasks["source"] == PARTS
    assert once(source)


def test_two_predictions_of_one_read(run, rows, source, expected):
    pair = dask.compute(predict(rows), predict(rows, columns=["a"]))
    assert [pred.p.sum() for pred in pair] == [expected.p.sum(), expected.a.sum()]
    assert once(source)


def test_one_prediction_read_twice_is_made_once(run, rows, source, expected):
    pred = predict(rows)
    low, high = dask.compute(pred.p.min(), pred.p.max())
    assert (low, high) == (expected.p.min(), expected.p.max())
    assert run.tasks["source-getitem-predictmodel-getitem"] == PARTS
    assert once(source)


def test_both_sides_of_an_operation_are_one_task(run, rows, source, expected):
    result = (predict(rows).p + rows.b).compute()
    assert result.to_list() == (expected.p + expected.b).to_list()
    assert len(run.tasks) == 2
    assert once(source)


def test_a_prediction_of_a_prediction(run, rows, source, expected):
    twice = predict(predict(rows), output="q", columns=["p", "b"])
    assert twice.compute().q.to_list() == (expected.p + expected.b).to_list()
    assert run.tasks["source-predictmodel-predictmodel"] == PARTS


def test_a_merge_runs_each_side_once(run, rows, source, expected):
    pred = predict(rows)
    other = rows[["id", "b"]].rename(columns={"b": "c"})
    result = pred.merge(other, on="id").compute().sort_values("id")
    assert result.p.to_list() == expected.p.to_list()
    assert result.c.to_list() == expected.b.to_list()
    assert once(source)


def test_a_filter_by_something_of_all_rows(run, rows, source, expected):
    pred = predict(rows)
    result = pred[pred.p > pred.p.mean()].compute()
    assert result.id.to_list() == expected[expected.p > expected.p.mean()].id.to_list()
    assert once(source)


def test_one_partition_runs_alone(run, rows, source):
    predict(rows).partitions[1].compute()
    assert source.made == {1: 1}
    predict(rows).optimize().partitions[2].compute()
    assert source.made == {1: 1, 2: 1}


def test_equal_expressions_have_equal_names(rows):
    def lowered():
        pair = predict(rows).p + rows.b
        return dask._expr.FinalizeCompute(pair.expr).optimize()

    first = lowered()
    assert first._name == lowered()._name
    assert first.__dask_graph__().keys() == lowered().__dask_graph__().keys()


def test_survives_pickle(client, expected, tmp_path):
    dd.from_pandas(expected[["id", "a", "b"]], npartitions=2).to_parquet(tmp_path)
    pred = predict(dd.read_parquet(tmp_path))
    assert pickle.loads(pickle.dumps(pred.optimize().expr))._name
    assert pred.compute().p.to_list() == expected.p.to_list()
    assert pred.p.max().compute() == expected.p.max()


def test_newer_versions_of_operands_are_followed(run, rows, expected):
    frame = dd.from_pandas(expected[["id", "a", "b"]], npartitions=PARTS)
    doubled = frame.assign(a=frame.a * 2)
    pred = predict(frame)[["p"]].rename(columns={"p": "q"}).expr
    fused = dask._expr._ExprSequence(pred).optimize().operands[0]
    assert len(fused.dependencies()) == 1
    newer = type(fused)(*fused.operands[:1], doubled.expr.lower_completely())
    assert newer._name != fused._name
    result = dd.concat([dask.dataframe.dask_expr.new_collection(newer)]).compute()
    assert result.q.to_list() == (expected.a * 2 + expected.b).to_list()


def test_the_plan_before_lowering_is_not_fused(rows):
    pred = predict(rows)
    plan = pred[pred.p > 0].simplify().expr
    assert len(list(plan.find_operations(Predict))) == 1


STEPS = {
    "input": lambda f, rows: f[f.a > -2],
    "output": lambda f, rows: f[f.p > -3],
    "assign": lambda f, rows: f.assign(a=f.p * 2),
    "columns": lambda f, rows: f[["id", "a", "b", "p"]],
    "other": lambda f, rows: f[f.b.isin([-2, 0, 1, 2])],
    "again": lambda f, rows: _again(f),
    "mean": lambda f, rows: f[f.b <= f.b.max()],
    "source": lambda f, rows: f.merge(rows[["id"]], on="id"),
}


def _again(frame):
    if isinstance(frame, pd.DataFrame):
        return frame.assign(p=frame.a + frame.b)
    return predict(frame.drop(columns="p"))


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(st.sampled_from(sorted(STEPS)), max_size=5),
    end=st.sampled_from(["compute", "pair", "persist"]),
)
def test_any_chain_equals_pandas_and_reads_once(steps, end):
    source, run = Source(), Run()
    rows, whole = read(source), whole_frame()
    result, wanted = predict(rows), whole.assign(p=whole.a + whole.b)
    for step in steps:
        result, wanted = STEPS[step](result, rows), STEPS[step](wanted, whole)
    with dask.config.set(scheduler=run):
        if end == "pair":
            result, low = dask.compute(result, rows.a.min())
            assert low == whole.a.min()
        elif end == "persist":
            (result,) = dask.persist(result)
            reads = dict(source.made)
            result = result.compute()
            assert source.made == reads
        else:
            result = result.compute()
    assert once(source)
    by_id = [f[["id", "a", "b", "p"]].sort_values("id") for f in (result, wanted)]
    left, right = (f.reset_index(drop=True) for f in by_id)
    pd.testing.assert_frame_equal(left, right)
