"""The example notebook in a real kernel, and what is left of it when that is gone."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
nbconvert = pytest.importorskip("nbconvert")

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples/notebook.ipynb"


def cell(notebook: Any, text: str) -> list[Any]:
    """Outputs of the one cell that contains a text."""
    code = [each for each in notebook.cells if each.cell_type == "code"]
    (found,) = [each for each in code if text in each.source]
    return list(found.outputs)


def html(output: Any) -> str:
    return str(output["data"]["text/html"])


def words(page: str) -> str:
    """Text of a page, as nbconvert writes its tags anew."""
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


@pytest.fixture
def executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # Kernels of this environment only; no history, no configuration of the user.
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, 4)
    resources = {"metadata": {"path": str(tmp_path)}}
    client = nbclient.NotebookClient(notebook, timeout=250, resources=resources)
    client.execute(env=dict(os.environ))
    return notebook


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_example_notebook(executed: Any) -> None:
    (summary,) = cell(executed, "pred.infer")
    assert "run so far" in html(summary) and "nothing yet" in html(summary)
    assert "run so far: nothing yet" in summary["data"]["text/plain"]

    link, shown = cell(executed, "dask_infer.progress()")
    assert re.fullmatch(r"http://\S+/infer\n", link["text"])
    # One output, which was replaced again and again; its last state is the end.
    assert shown["output_type"] == "display_data"
    assert "Scorer: 400,000 rows, " in html(shown) and "width: 100.0%" in html(shown)
    assert "Scorer: 400,000 rows, " in shown["data"]["text/plain"]

    (answer,) = cell(executed, "dask_infer.why()")
    assert "400,000 rows" in html(answer) and "forward" in html(answer)
    (replicas,) = cell(executed, "dask_infer.replicas()")
    assert "Scorer" in html(replicas)
    *_, plot = cell(executed, "plt.subplots")
    assert len(plot["data"]["image/png"]) > 5000

    page, _ = nbconvert.HTMLExporter().from_notebook_node(executed)
    for output in (summary, shown, answer):
        assert words(html(output)) in words(page)
    assert "width: 100.0%" in page


def test_the_example_notebook_is_saved_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(notebook)
    assert not [each for each in notebook.cells if each.get("outputs")]
