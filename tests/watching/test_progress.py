"""Progress in rows, with every scheduler and every function that computes."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch
from distributed import Client, LocalCluster, futures_of

import dask_infer
from dask_infer import Layout
from dask_infer.graph.computing import listeners
from dask_infer.metrics.sums import Label, Sums
from dask_infer.watching.display import (
    Lines,
    PlainText,
    ProgressLine,
    Terminal,
    open_display,
)
from dask_infer.watching.job_progress import JobProgress
from dask_infer.watching.local_log import log_local_jobs
from tests.conftest import QUIET

ROWS = 1000
EMPTY, HALF, FULL = f"[{24 * ' '}]", f"[{12 * '#'}{12 * ' '}]", f"[{24 * '#'}]"

pytestmark = pytest.mark.usefixtures("ends_only")


class Slow(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0]


class Other(Slow):
    """A second model, of another name."""


def slowly(frame: pd.DataFrame) -> pd.DataFrame:
    time.sleep(0.005)
    return frame


def fails(frame: pd.DataFrame) -> pd.DataFrame:
    time.sleep(0.005)
    if (frame["a"] > 900).any():
        raise ValueError("no such row")
    return frame


@contextlib.contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Press Ctrl-C once."""
    # A shell that starts tests in the background has them ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        yield
    signal.signal(signal.SIGINT, before)
    timer.join()


def dies_once(marker: str) -> Any:
    def preprocess(frame: pd.DataFrame) -> pd.DataFrame:
        time.sleep(0.02)
        if (frame["a"] > 700).any() and not Path(marker).exists():
            Path(marker).touch()
            time.sleep(1)  # what ran until now is counted
            os._exit(1)
        return frame

    return preprocess


@pytest.fixture
def ends_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line every ten seconds, however busy the machine is."""
    monkeypatch.setattr("dask_infer.watching.display.SELDOM", 1e6)


def numbers(npartitions: int = 8) -> dd.DataFrame:
    frame = pd.DataFrame({"a": np.arange(ROWS, dtype="float32")})
    return dd.from_pandas(frame, npartitions=npartitions)


def predict(ddf: Any = None, model: Any = None, **options: Any) -> dd.DataFrame:
    ddf = numbers() if ddf is None else ddf
    defaults = {"columns": ["a"], "batch_size": 25, "preprocess": slowly}
    options = {"output": "y", "meta": "float32"} | defaults | options
    return ddf.infer.predict(model or Slow(), **options)


def shown(capsys: pytest.CaptureFixture[str]) -> list[str]:
    lines = capsys.readouterr().err.splitlines()
    return [line.split("] ", 1)[1] for line in lines if line.startswith("[")]


def test_rows_of_other_processes(capsys: pytest.CaptureFixture[str]) -> None:
    with dask_infer.progress():
        predict().compute(scheduler="processes", num_workers=1)
    assert shown(capsys)[-1].startswith("Slow: 1,000 rows, ")


def test_tasks_of_others_may_have_any_key() -> None:
    with dask_infer.progress():
        assert dask.threaded.get({100: (sum, [1, 2])}, 100) == 3


@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_rows_in_one_process(
    scheduler: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pred = predict()
    with dask.config.set(scheduler=scheduler):
        with dask_infer.progress():
            pred.compute()
        with dask_infer.progress():
            pred.to_parquet(tmp_path / "out")
        with dask_infer.progress():
            pred.optimize().compute()
    lines = shown(capsys)
    assert len(lines) == 3
    assert all(line.startswith("Slow: 1,000 rows, ") for line in lines), lines
    assert listeners == [log_local_jobs]


def test_rows_on_a_cluster(
    client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pred = predict()
    for _ in range(2):  # the second time counts from its own beginning
        with dask_infer.progress():
            pred.compute()
    with dask_infer.progress():
        pred.to_parquet(tmp_path / "out")
    lines = shown(capsys)
    assert len(lines) == 3
    assert all(line.startswith("Slow: 1,000 rows, ") for line in lines), lines


def test_each_model_has_a_line_and_filters_end_at_the_truth(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    ddf = numbers()
    few = predict(ddf[ddf["a"] >= 100], Other())
    with dask_infer.progress():
        dask.compute(predict(ddf), few)
    one, two = shown(capsys)
    assert one.startswith("Slow: 1,000 rows, ")
    assert two.startswith("Other: 900 rows, ")


def test_models_of_one_name_are_distinct(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ddf = numbers()
    with dask_infer.progress():
        one, two = predict(ddf), predict(ddf, output="z", batch_size=50)
        dask.compute(one, two, scheduler="threads")
    names = sorted(line.partition(":")[0] for line in shown(capsys))
    assert names == ["Slow (y)", "Slow (z)"]


@pytest.mark.parametrize("scheduler", ["threads", "distributed"])
def test_what_was_optimized_before(
    scheduler: str, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    ddf = numbers()
    few = predict(ddf[ddf["a"] >= 100], Other()).optimize()  # Dask fuses all of it
    with dask_infer.progress():
        few.compute(scheduler=scheduler)
    (line,) = shown(capsys)
    assert line.startswith("Other: 900 rows, ")


def test_persisted(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    pred = predict(model=Other(), preprocess=None).persist()
    dask_infer.progress(pred)
    dask_infer.progress(pred)  # nothing runs any more
    again = predict(model=Other(), preprocess=None).persist()
    dask_infer.progress(again)
    dask_infer.progress([again])
    assert shown(capsys) == ["Other: 1,000 rows"] * 4


def test_persisted_without_a_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    dask_infer.progress(predict().persist(scheduler="sync"))
    (line,) = shown(capsys)
    assert "1,000 rows" in line


def test_what_is_not_persisted_is_refused(client: Client) -> None:
    """Its partitions counted as computed: a full bar of what never ran."""
    pred = predict()
    for given in (pred, pred.persist()[pred.columns[:1]], 3):
        with pytest.raises(ValueError, match=r"pred\.persist\(\).*is lazy"):
            dask_infer.progress(given)


def test_an_error_ends_the_line(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    pred = predict(preprocess=fails)
    with pytest.raises(Exception, match="no such row"), dask_infer.progress():
        pred.compute()
    persisted = pred.persist()
    dask_infer.progress(persisted)
    lines = shown(capsys)
    one, two = lines
    assert "of 1,000 rows, stopped" in one
    assert "stopped" in two


def test_ctrl_c_ends_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    pred = predict(batch_size=1)
    with interrupted_after(1.5), dask_infer.progress():
        pred.compute(scheduler="threads")
    (line,) = shown(capsys)
    assert " of 1,000 rows, stopped" in line
    assert listeners == [log_local_jobs]


def test_ctrl_c_cancels_what_a_cluster_computes(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    pred = predict(numbers(40), batch_size=1)
    with interrupted_after(1.5), dask_infer.progress():
        pred.compute()
    (line,) = shown(capsys)
    assert " of 1,000 rows, stopped" in line
    deadline = time.monotonic() + 60
    while client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_ctrl_c_cancels_what_was_persisted(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    pred = predict(numbers(40), batch_size=1).persist()
    with interrupted_after(1.5):
        dask_infer.progress(pred)
    (line,) = shown(capsys)
    assert "stopped" in line
    assert all(future.cancelled() for future in futures_of(pred))


def test_asynchronous_client(capsys: pytest.CaptureFixture[str]) -> None:
    async def run() -> None:
        async with (
            LocalCluster(n_workers=1, processes=False, asynchronous=True, **QUIET) as c,
            Client(c, asynchronous=True) as client,
        ):
            with pytest.raises(RuntimeError, match="async with"), dask_infer.progress():
                pass
            async with dask_infer.progress():
                await client.compute(predict())
            persisted = client.persist(predict(model=Other()))
            await dask_infer.progress(persisted)

    asyncio.run(run())
    one, two = shown(capsys)
    assert one.startswith("Slow: 1,000 rows, ")
    assert two == "Other: 1,000 rows"


def test_a_worker_that_dies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pred = predict(numbers(4), preprocess=dies_once(str(tmp_path / "died")))
    seen = []
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, **QUIET) as c,
        Client(c),
        dask_infer.progress() as running,
    ):
        thread = threading.Thread(target=pred.compute)
        thread.start()
        while thread.is_alive():
            time.sleep(0.1)
            seen += [(job.done, job.total) for job in running._jobs.values()]
        thread.join()
    (line,) = shown(capsys)
    assert line.startswith("Slow: 1,000 rows, ")
    done = [d for d, _ in seen]
    assert done == sorted(done)
    assert all(total is None or d <= total for d, total in seen)


def test_a_slow_model_moves_within_a_partition() -> None:
    pred = predict(numbers(1), batch_size=5)
    seen, options = set(), {"scheduler": "sync"}
    with dask_infer.progress() as running:
        thread = threading.Thread(target=pred.compute, kwargs=options)
        thread.start()
        while thread.is_alive():
            time.sleep(0.05)
            seen |= {job.done for job in running._jobs.values()}
    assert any(0 < done < ROWS for done in seen)


class Naps(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if type(x) is torch.Tensor:  # shapes alone do not matter
            time.sleep(0.005)
        return x


def test_a_sweep_moves_within_a_pass() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), *[Naps() for _ in range(3)])
    options = {"preprocess": None, "meta": None, "batch_size": 20}
    layout = Layout(sweep=True, stages=["1", "2", "3"])
    pred = predict(numbers(1), model, parallel=layout, **options)
    seen: set[int] = set()
    with dask_infer.progress() as running:
        thread = threading.Thread(target=pred.compute, kwargs={"scheduler": "sync"})
        thread.start()
        while thread.is_alive():
            time.sleep(0.02)
            seen |= {job.done for job in running._jobs.values()}
    assert len(seen - {0, ROWS}) > 1


# --- lines ------------------------------------------------------------------------


def job(known: int | None = 1000, partitions: int = 10) -> JobProgress:
    made = JobProgress(Label("Linear-1a2b3c4d", None, "5e6f"))
    made.known, made.partitions = known, partitions
    return made


def line(text: str, fraction: float = 0) -> ProgressLine:
    return ProgressLine(text, fraction)


def sums(rows: int, started: int, rows_in: int, **more: int) -> Sums:
    return Sums({"rows": rows, "started": started, "rows_in": rows_in} | more)


def test_done_never_falls_nor_passes_the_total() -> None:
    made = job()
    for rows in (400, 300, 1200):
        made.update(sums(rows, 10, 1000))
    assert (made.done, made.total) == (1000, 1000)


def test_estimated_totals_are_marked() -> None:
    made = job(known=None)
    made.update(sums(100, 2, 240, failed_rows=20))
    assert (made.done, made.total) == (120, 1200)
    assert str(made.line("running")).startswith(
        "[##                      ] Linear: 120 of ~1,200 rows, 20 failed"
    )
    assert "~" not in made.line("done").text


def test_a_line_says_that_the_model_is_loaded() -> None:
    made = job()
    made.update(Sums({"started": 2, "rows_in": 200}, {"load": 2.0}))
    assert made.line("running").text == "Linear: 0 of 1,000 rows, loading the model"
    made.update(Sums({"started": 2, "rows_in": 200, "rows": 5}, {"load": 2.0}))
    assert "loading" not in made.line("running").text


def test_earlier_runs_of_a_persisted_job_do_not_count() -> None:
    made = job(known=None, partitions=4)
    made.began_before, made.finished = True, 2
    made.update(sums(750, 8, 800, partitions=6))  # 4 partitions of them earlier
    assert (made.done, made.total) == (350, 400)
    assert "Linear: ~350 of ~400 rows" in made.line("running").text


def test_what_is_estimated_from_other_runs_is_marked_at_the_end() -> None:
    """Rows of another frame are among those of the job: 400 would be wrong as well."""
    made = job(known=None, partitions=4)
    made.began_before, made.finished = True, 4
    made.update(sums(1400, 8, 1400, partitions=8))
    assert made.line("done").text == "Linear: ~700 rows"


def test_a_terminal_is_written_over() -> None:
    file = io.StringIO()
    terminal = Terminal(file)
    terminal.show([line("one"), line("two")])
    terminal.show([line("ONE", 0.5), line("TWO", 1)], last=True)
    assert file.getvalue() == (
        f"\r\x1b[2K{EMPTY} one\n\r\x1b[2K{EMPTY} two\x1b[1A"
        f"\r\x1b[2K{HALF} ONE\n\r\x1b[2K{FULL} TWO\n"
    )


def test_files_get_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dask_infer.watching.display.SELDOM", 10)
    file = io.StringIO()
    plain = PlainText(file)
    plain.show([line("at once")])
    later = plain._shown + 10
    monkeypatch.setattr(time, "monotonic", lambda: later)
    plain.show([line("after ten seconds")])
    plain.show([line("soon after")])
    plain.show([line("the end")], last=True)
    assert file.getvalue() == f"{EMPTY} after ten seconds\n{EMPTY} the end\n"


@pytest.mark.parametrize(
    ("terminal", "kind", "expected"),
    [(True, "xterm", Terminal), (True, "dumb", PlainText), (False, "xterm", PlainText)],
)
def test_what_is_no_terminal_gets_plain_text(
    terminal: bool, kind: str, expected: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", kind)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert isinstance(open_display(), expected)


def test_a_notebook_keeps_the_last_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs: list[Any] = []
    handle = types.SimpleNamespace(update=outputs.append)
    ipython: Any = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    ipython.display = types.ModuleType("IPython.display")
    ipython.display.display = lambda lines, display_id: outputs.append(lines) or handle
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)
    with dask_infer.progress():
        predict().compute(scheduler="sync")
    assert "Slow: 1,000 rows" in repr(outputs[-1])
    assert "Slow: 1,000 rows" in outputs[-1]._repr_html_()


def test_lines_are_bars_in_notebooks() -> None:
    shown = Lines([line("a <b>", 0.25)])._repr_html_()
    assert shown is not None
    assert "a &lt;b&gt;" in shown and "width: 25.0%" in shown
