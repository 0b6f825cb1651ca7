"""Sweeps as a user runs them: equal to the whole model, whatever fails."""

from __future__ import annotations

import time
from pathlib import Path

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch

import dask_infer
from dask_infer import Layout, PartitionError, PlacementError
from dask_infer.metrics.totals import totals

from .conftest import near


class Faulty(torch.nn.Module):
    """A layer that notes its forwards and refuses, or hangs on, some values.

    It runs after layers that keep the first column as it is.
    """

    def __init__(
        self, log: Path, above: float = 2.0, most: int = 10**9, nap: float = 0
    ):
        super().__init__()
        self.log, self.above, self.most, self.nap = str(log), above, most, nap

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if type(x) is not torch.Tensor:  # shapes alone
            return x
        with open(self.log, "a") as log:
            log.write(f"{len(x)}\n")
        if len(x) > self.most:
            raise MemoryError
        if (x[:, 0] > self.above).any():
            if not self.nap:
                raise ValueError("too large")
            time.sleep(self.nap)
        return x


def faulty(log: Path, **options: float) -> torch.nn.Sequential:
    """A model of three groups, which fails in the second; its output is ``a``."""
    layers = [torch.nn.Linear(2, 2, bias=False) for _ in range(3)]
    for layer in layers:
        torch.nn.init.eye_(layer.weight)
    last = torch.nn.Linear(2, 1, bias=False)
    last.weight.data = torch.tensor([[1.0, 0.0]])
    return torch.nn.Sequential(layers[0], layers[1], Faulty(log, **options), last)


CUT = Layout(sweep=True, stages=["1", "3"])


def forwards(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().split()]


def passes(caplog: pytest.LogCaptureFixture) -> int:
    return sum("passed %d layer groups" in record.msg for record in caplog.records)


@pytest.mark.parametrize("stages", [2, 5, "auto", ["1", "6"]])
@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_a_sweep_gives_what_the_whole_model_gives(
    ddf, pdf, model, expected, stages, scheduler
):
    pred = ddf.infer.predict(model, parallel=Layout(sweep=True, stages=stages))
    near(pred.compute(scheduler=scheduler), expected, pdf)


def test_each_process_sweeps_its_own_rows(ddf, pdf, model, expected):
    pred = ddf.infer.predict(model, parallel=Layout(sweep=True, stages=3))
    near(pred.compute(scheduler="processes", num_workers=2), expected, pdf)


def test_workers_sweep(client, ddf, pdf, model, expected):
    pred = ddf.infer.predict(model, parallel=Layout(sweep=True, stages=3))
    near(pred.compute(), expected, pdf)
    table = dask_infer.replicas()
    assert set(table[table.model == "Sequential"].stage) == {0, 1, 2}
    dask_infer.unload(model)


@pytest.mark.parametrize("rows", [0, 1, 2, 13])
def test_fewer_rows_than_groups_and_none_at_all(pdf, model, expected, rows):
    few = dd.from_pandas(pdf.iloc[:rows], npartitions=1)
    layout = Layout(sweep=True, stages=3, microbatch=4)
    pred = few.infer.predict(model, parallel=layout)
    near(pred.compute(scheduler="sync"), expected[:rows], pdf.iloc[:rows])


def test_empty_partitions_among_full_ones(ddf, pdf, model, expected):
    positive = ddf[ddf.a > 2].infer.predict(model, parallel="sweep")
    keep = (pdf.a > 2).to_numpy()
    near(positive.compute(scheduler="threads"), expected[keep], pdf[keep])


def test_head_and_persist_compute_a_part(ddf, pdf, model, expected):
    pred = ddf.infer.predict(model, parallel=Layout(sweep=True, stages=3))
    with dask.config.set(scheduler="threads"):
        near(pred.head(3), expected[:3], pdf.iloc[:3])
        near(pred.persist().compute(), expected, pdf)


def test_activations_beyond_the_budget_go_to_files(ddf, pdf, model, expected, tmp_path):
    pred = ddf.infer.predict(model, parallel=Layout(sweep=True, stages=3), batch_size=7)
    settings = {"infer.sweep.activations": 500, "temporary-directory": str(tmp_path)}
    with dask.config.set(settings):
        near(pred.compute(scheduler="threads"), expected, pdf)
    assert not [*tmp_path.iterdir()]


def test_postprocess_gets_the_rows_and_the_inputs(ddf, pdf, model, expected):
    def checked(output, frame, inputs):
        assert np.array_equal(inputs.numpy(), frame[["a", "b"]].to_numpy())
        return output[:, 0] + inputs[:, 0]

    with dask.config.set({"infer.sweep.activations": 500}):
        pred = ddf.infer.predict(
            model, columns=["a", "b"], postprocess=checked, meta="float32",
            parallel=Layout(sweep=True, stages=3), batch_size=7,
        )  # fmt: skip
        near(pred.compute(scheduler="sync"), expected + pdf.a.to_numpy(), pdf)


@pytest.mark.parametrize("on_error", ["null", "quarantine"])
def test_rows_that_fail_in_a_group_are_found_within_the_pass(
    pdf, tmp_path, caplog, on_error
):
    log = tmp_path / "log"
    frame = dd.from_pandas(pdf, npartitions=1)
    pred = frame.infer.predict(
        faulty(log), parallel=CUT, on_error=on_error, batch_size=64
    )
    log.write_text("")
    with caplog.at_level("INFO", "dask_infer"):
        result = pred.compute(scheduler="sync")
    bad = (pdf.a > 2).to_numpy()
    assert 0 < bad.sum() < 20
    assert result["prediction"].isna().to_numpy().tolist() == bad.tolist()
    near(result[~bad], pdf.a[~bad].to_numpy(), pdf[~bad])
    if on_error == "quarantine":
        assert (result["infer_error"].notna().to_numpy() == bad).all()
        assert "ValueError: too large" in result["infer_error"][bad].iloc[0]
    assert passes(caplog) == 2  # one to find them, and one to make sure
    assert sum(forwards(log)) < 2 * len(pdf) * np.log2(64)


def test_rows_drawn_at_random_are_tried_in_one_pass(pdf, tmp_path, caplog):
    frame = dd.from_pandas(pdf.iloc[:80], npartitions=1)
    pred = frame.infer.predict(
        faulty(tmp_path / "log", above=-1e9), parallel=CUT,
        on_error="null", batch_size=80,
    )  # fmt: skip
    with (
        caplog.at_level("INFO", "dask_infer"),
        pytest.raises(PartitionError, match="20 rows drawn at random"),
    ):
        pred.compute(scheduler="sync")
    assert passes(caplog) == 3


def test_rows_that_fail_in_the_first_group_take_no_other_pass(pdf, tmp_path, caplog):
    frame = dd.from_pandas(pdf, npartitions=1)
    pred = frame.infer.predict(
        faulty(tmp_path / "log"), parallel=Layout(sweep=True, stages=["3"]),
        on_error="null", batch_size=64,
    )  # fmt: skip
    with caplog.at_level("INFO", "dask_infer"):
        result = pred.compute(scheduler="sync")
    assert result["prediction"].isna().tolist() == (pdf.a > 2).tolist()
    assert passes(caplog) == 1


def test_the_error_of_a_group_names_it(ddf, tmp_path):
    pred = ddf.infer.predict(faulty(tmp_path / "log"), parallel=CUT)
    with pytest.raises(PartitionError, match="too large") as caught:
        pred.compute(scheduler="sync")
    assert caught.value.stage == 1
    assert caught.value.step == "forward"


def test_an_error_ends_the_pass_at_once(pdf, tmp_path):
    log = tmp_path / "log"
    first = pdf.copy()
    first.iloc[30, 0] = 100.0
    frame = dd.from_pandas(first, npartitions=1)
    model = faulty(log, above=99.0)
    # The batches of the third group would all be run again.
    model.append(Faulty(log, above=1e9))
    pred = frame.infer.predict(
        model, parallel=Layout(sweep=True, stages=["1", "4"]), batch_size=10
    )
    with pytest.raises(PartitionError, match="10 rows, 90 to 117"):
        pred.compute(scheduler="sync")
    assert len(forwards(log)) == 4


@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_batches_of_rows_that_belong_together(pdf, scheduler):
    class Centred(torch.nn.Module):
        def forward(self, x):
            return x - x.mean(0)

    model = torch.nn.Sequential(torch.nn.Tanh(), Centred(), torch.nn.Linear(2, 1))
    frame = dd.from_pandas(pdf, npartitions=3)
    pred = frame.infer.predict(
        model, parallel=Layout(sweep=True, stages=["1"]), row_wise=False, batch_size=16
    )
    with torch.inference_mode():
        parts = [frame.get_partition(n).compute().to_numpy() for n in range(3)]
        expected = [
            model(torch.tensor(part[at : at + 16]))[:, 0].numpy()
            for part in parts
            for at in range(0, len(part), 16)
        ]
    near(pred.compute(scheduler=scheduler), np.concatenate(expected), pdf)


def test_texts_of_a_real_model(minilm):
    texts = [f"{'word ' * (n % 17)} and {n}" for n in range(60)]
    frame = dd.from_pandas(pd.DataFrame({"text": texts}), npartitions=3)
    options = {"columns": "text", "keep": False}
    whole = frame.infer.predict(str(minilm), **options)
    swept = frame.infer.predict(
        str(minilm), parallel=Layout(sweep=True, stages=4), **options
    )
    column = whole.columns[0]
    one, other = (
        each.compute(scheduler="threads")[column].infer.to_numpy()
        for each in (whole, swept)
    )
    np.testing.assert_allclose(other, one, atol=1e-5)


@pytest.mark.parametrize("place", [0, 2])
def test_out_of_memory_halves_batches_where_they_are(pdf, tmp_path, place):
    log = tmp_path / "log"
    model = faulty(log, above=1e9, most=10)
    if place == 0:
        model = torch.nn.Sequential(model[2], *model[:2], model[3])
    frame = dd.from_pandas(pdf, npartitions=2)
    pred = frame.infer.predict(model, parallel=CUT, batch_size=64)
    near(pred.compute(scheduler="threads"), pdf.a.to_numpy(), pdf)
    assert sum(n for n in forwards(log) if n <= 10) >= len(pdf)


@pytest.mark.parametrize("layout", ["data", Layout(sweep=True, stages=["3"]), CUT])
def test_halvings_are_those_of_the_whole_model(pdf, tmp_path, layout):
    def counted() -> float:
        sums = totals.snapshot("local").values()
        return sum(each.count("halvings") for each in sums)

    frame, before = dd.from_pandas(pdf.iloc[:30], npartitions=1), counted()
    model = faulty(tmp_path / "log", above=1e9, most=10)
    frame.infer.predict(model, parallel=layout, batch_size=30).compute(scheduler="sync")
    assert counted() - before == 2  # 30 to 15, and 15 to 7


def test_a_row_that_hangs_is_left_out(pdf, tmp_path):
    log = tmp_path / "log"
    one = pdf.iloc[:40].copy()
    one.iloc[17, 0] = 50.0
    frame = dd.from_pandas(one, npartitions=1)
    pred = frame.infer.predict(
        faulty(log, above=49.0, nap=3.0), parallel=CUT,
        on_error="null", timeout=0.3, batch_size=16,
    )  # fmt: skip
    result = pred.compute(scheduler="sync")
    bad = np.arange(40) == 17
    assert result["prediction"].isna().to_numpy().tolist() == bad.tolist()
    near(result[~bad], one.a[~bad].to_numpy(), one[~bad])
    time.sleep(3)  # for the abandoned threads


@pytest.mark.slow
def test_a_group_that_only_hangs_ends_the_partition(pdf, tmp_path):
    log = tmp_path / "log"
    frame = dd.from_pandas(pdf, npartitions=1)
    pred = frame.infer.predict(
        faulty(log, above=-1e9, nap=3.0), parallel=CUT,
        on_error="null", timeout=0.3, batch_size=64,
    )  # fmt: skip
    log.write_text("")
    reason = "9 forwards hung and none ended, .* rows: forward: .* raise timeout="
    with pytest.raises(PartitionError, match=reason):
        pred.compute(scheduler="sync")
    assert len(forwards(log)) <= 9
    time.sleep(3)  # for the abandoned threads


def test_groups_are_loaded_once_for_the_partitions_that_wait(
    pdf, model, expected, caplog
):
    # Room for the first group, which stays, and two that pass.
    settings = {"infer.replica.memory-limit": 2600}
    frame = dd.from_pandas(pdf, npartitions=2)
    pred = frame.infer.predict(model, parallel=Layout(sweep=True, stages=6))
    dask_infer.unload()
    with dask.config.set(settings), caplog.at_level("INFO", "dask_infer"):
        near(pred.compute(scheduler="threads", num_workers=2), expected, pdf)
    assert passes(caplog) == 1
    assert "203 rows of 2 partitions passed 5 layer groups" in caplog.text
    loaded = [r.getMessage() for r in caplog.records if "loaded in" in r.msg]
    assert len(loaded) == 6
    assert dask_infer.replicas().stage.tolist() == [0]


def test_two_models_at_once(ddf, pdf, model, expected):
    other = torch.nn.Sequential(*[*model][:3], torch.nn.Linear(16, 1))
    with torch.inference_mode():
        theirs = other(torch.tensor(pdf.to_numpy(copy=True)))[:, 0].numpy()
    a = ddf.infer.predict(model, parallel=Layout(sweep=True, stages=3))
    b = ddf.infer.predict(other, parallel=Layout(sweep=True, stages=2))
    both = ddf.infer.predict(model, output="first", parallel="sweep").infer.predict(
        other, columns=["a", "b"], parallel=Layout(sweep=True, stages=2)
    )
    ours, others, chained = dask.compute(a, b, both, scheduler="threads")
    near(ours, expected, pdf)
    near(others, theirs, pdf)
    near(chained, theirs, pdf)


def test_what_a_sweep_cannot_do_is_refused(ddf, model):
    with pytest.raises(ValueError, match="method='forward'"):
        ddf.infer.predict(model, parallel="sweep", method="forward")
    with pytest.raises(ValueError, match="resources"):
        ddf.infer.predict(model, parallel="sweep", resources={"GPU": 1})
    with pytest.raises(ValueError, match="leave out replicas="):
        Layout(sweep=True, replicas=2)
    with pytest.raises(ValueError, match="at most stages="):
        ddf.infer.predict(model, parallel=Layout(sweep=True, stages=50))
    assert Layout(sweep=True).stages == "auto"


def test_a_block_larger_than_the_limit_is_refused_by_name(ddf, model):
    pred = ddf.infer.predict(model, parallel="sweep")
    limit = dask.config.set({"infer.replica.memory-limit": 1000})
    with limit, pytest.raises(PlacementError, match=r'block "\d" of .*Sequential'):
        pred.compute(scheduler="sync")


class Reordered(torch.nn.Module):
    """Runs its layers on rows in another order, and puts them back."""

    def __init__(self, log: Path, order: str):
        super().__init__()
        self.layers, self.order = faulty(log, above=1.0), order

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        order = x[:, 0].argsort()
        x = x.flip(0) if self.order == "flip" else x[order]
        for layer in self.layers:
            x = layer(x)
        return x.flip(0) if self.order == "flip" else x[order.argsort()]


@pytest.mark.parametrize("order", ["flip", "sort"])
def test_rows_in_another_order_are_not_taken_for_others(ddf, pdf, tmp_path, order):
    """Those of a batch that failed were cut by place: values of other rows."""
    model = Reordered(tmp_path / "log", order)
    pred = ddf.infer.predict(
        model, parallel=Layout(sweep=True, stages=3), on_error="null", batch_size=9
    )
    found = pred.compute(scheduler="sync")["prediction"].to_numpy()
    wanted = pdf["a"].where(pdf["a"] <= 1.0).to_numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-6)


class Sorts(torch.nn.Module):
    """A layer that sorts or turns its rows around, and says how to undo it."""

    def __init__(self, how: str):
        super().__init__()
        self.how = how

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        order = torch.arange(len(x))
        if self.how == "sort":
            order = x[:, 0].argsort()
        elif self.how == "roll":
            order = order.roll(3)
        else:
            order = order.flip(0)
        # Beside rows, and not a list of places: an axis that looks like their own.
        return x[order], order.argsort()[:, None].to(x.dtype)


class Restores(torch.nn.Module):
    def forward(self, x: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        return x[back[:, 0].long()]


class ReorderedWithin(torch.nn.Module):
    """The first of its layers puts rows in another order, and the last undoes it."""

    def __init__(self, log: Path, how: str, **options: float):
        super().__init__()
        layers = [Sorts(how), *faulty(log, **options), Restores()]
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, back = self.layers[0](x)
        for layer in self.layers[1:-1]:
            x = layer(x)
        return self.layers[-1](x, back)


WITHIN = Layout(sweep=True, stages=["layers.1", "layers.3", "layers.5"])


@pytest.mark.parametrize("how", ["sort", "roll", "flip"])
def test_rows_that_a_layer_reorders_are_not_taken_for_others(ddf, pdf, tmp_path, how):
    """Only a batch that runs whole from its inputs tells which output is whose."""
    model = ReorderedWithin(tmp_path / "log", how, above=1.9)
    pred = ddf.infer.predict(model, parallel=WITHIN, on_error="null", batch_size=9)
    found = pred.compute(scheduler="sync")["prediction"].to_numpy()
    wanted = pdf["a"].where(pdf["a"] <= 1.9).to_numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_rows_in_another_order_that_do_not_fit(pdf, tmp_path):
    few = pdf.iloc[:30]
    model = ReorderedWithin(tmp_path / "log", "sort", above=1e9, most=4)
    pred = dd.from_pandas(few, npartitions=1).infer.predict(
        model, parallel=WITHIN, batch_size=9
    )
    near(pred.compute(scheduler="sync"), few.a.to_numpy(), few)
