"""What `pred.infer` says of a dataframe's predictions."""

from __future__ import annotations

import asyncio

import dask.dataframe as dd
import numpy as np
import pandas as pd
import torch
from distributed import Client, LocalCluster, wait

import dask_infer
from dask_infer import Ensemble, Layout, Towers
from tests.conftest import QUIET


class Scored(torch.nn.Linear):
    """A model whose rows no other test counts."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__(2, outputs)


def numbers(rows: int = 1000) -> dd.DataFrame:
    values = np.random.default_rng(0).normal(size=(rows, 2)).astype("float32")
    return dd.from_pandas(pd.DataFrame(values, columns=["a", "b"]), npartitions=4)


def test_model_layout_inputs_and_outputs() -> None:
    pred = numbers().infer.predict(Scored(3), columns={"input": ["a", "b"]})
    text = repr(pred.infer)
    job = pred.expr.job
    assert text.splitlines()[0] == job.model.label
    assert f"key: {job.model.key}" in text
    assert "layout: each worker holds the whole model" in text
    assert "inputs: input=[a, b]: floating (n, 2)" in text
    assert "outputs: prediction: float32 (n, 3)" in text
    assert "run so far: nothing yet" in text
    assert job.model.key in pred.infer._repr_html_()


def test_many_columns_are_not_all_named() -> None:
    frame = pd.DataFrame(
        np.zeros((4, 30), "float32"), columns=[f"c{i}" for i in range(30)]
    )
    pred = dd.from_pandas(frame, 1).infer.predict(torch.nn.Linear(30, 1))
    assert "inputs: [c0, c1, c2, c3, c4, c5, ... 30 in all]: " in repr(pred.infer)


def test_a_layout_is_named() -> None:
    model = torch.nn.Sequential(Scored(), torch.nn.Linear(1, 1))
    layout = Layout(stages=2)
    pred = numbers().infer.predict(
        model, columns=["a", "b"], parallel=layout, resources={"GPU": 1}
    )
    assert f"layout: {layout}, GPU: 1" in repr(pred.infer)


def test_layouts_that_are_no_group_are_named() -> None:
    model = torch.nn.Sequential(Scored(), torch.nn.Linear(1, 1))
    swept = numbers().infer.predict(
        model, columns=["a", "b"], parallel=Layout(stages=2, sweep=True)
    )
    assert f"layout: {Layout(stages=2, sweep=True)}" in repr(swept.infer)
    auto = numbers().infer.predict(model, columns=["a", "b"], parallel="auto")
    assert "layout: chosen when it is computed" in repr(auto.infer)


def test_each_prediction_is_listed_however_it_is_wrapped() -> None:
    one = numbers().infer.predict(Scored(), columns=["a", "b"], output="y")
    two = one.infer.predict(torch.nn.Linear(1, 1), columns=["y"], output="z")
    for frame in (two, two[two["z"] > 0], two.z, two.optimize()):
        text = repr(frame.infer)
        assert "outputs: y: " in text and "outputs: z: " in text


def test_each_of_several_models_is_named_by_its_part() -> None:
    def titles(model: object, **options: object) -> list[str]:
        shown = repr(numbers().infer.predict(model, keep=False, **options).infer)
        heads = [line for line in shown.splitlines() if line[:1] not in ("", " ")]
        return [head.partition(" ")[2] for head in heads]

    one, two = Scored(), Scored()
    towers = Towers(
        {"a": (one, ["a", "b"]), "b": Ensemble([two, two])}, head=lambda a, b: a + b
    )
    assert titles(towers, meta="float32") == [
        '(tower "a")',
        '(tower "b": member 0, tower "b": member 1)',
        "(head)",
    ]
    assert titles(one) == [""]


def test_a_frame_without_a_prediction_says_how_to_get_one() -> None:
    for infer in (numbers().infer, numbers().a.infer):
        assert "ddf.infer.predict(model)" in repr(infer)
        assert "ddf.infer.predict(model)" in infer._repr_html_()


def test_what_has_run_in_this_process() -> None:
    pred = numbers().infer.predict(Scored(), columns=["a", "b"])
    pred.compute(scheduler="sync")
    assert "run so far: 1,000 rows in 4 partitions" in repr(pred.infer)


def test_what_has_run_on_a_cluster(client: Client) -> None:
    pred = numbers().infer.predict(Scored(), columns=["a", "b"])
    assert "run so far: nothing yet" in repr(pred.infer)
    kept = pred.persist()
    wait(kept)
    lines = repr(pred.infer).splitlines()
    assert "  run so far: 1,000 rows in 4 partitions" in lines  # and none is running
    assert "(persisted)" in repr(kept.infer) and lines[-1] in repr(kept.infer)


def test_an_asynchronous_client_is_not_asked() -> None:
    async def run() -> str:
        async with (
            LocalCluster(n_workers=1, processes=False, asynchronous=True, **QUIET) as c,
            Client(c, asynchronous=True),
        ):
            return repr(numbers().infer.predict(Scored(), columns=["a", "b"]).infer)

    assert "the client is asynchronous" in asyncio.run(run())


def test_why_is_the_same_as_text_and_html() -> None:
    numbers().infer.predict(Scored(), columns=["a", "b"]).compute(scheduler="sync")
    answer = dask_infer.why()
    (job,) = answer.jobs
    for shown in (repr(answer), answer._repr_html_()):
        assert shown is not None
        assert job.cause in shown and job.job in shown
