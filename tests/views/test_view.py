"""What is shown as HTML says what the text says, in light and dark pages."""

from __future__ import annotations

import re
import sys

import pytest

from dask_infer import Layout
from dask_infer.views.view import View, render

VIEW = View(
    "MiniLM <L6>",
    {
        "layout": "a & b",
        "partitions": {"read": "3%", "forward": "97%"},
        "stage 0": {"forward": "80%", "idle": "20%"},
    },
    ("compute-bound", "more workers"),
)


def test_text_and_html_say_the_same() -> None:
    shown = VIEW.html()
    assert shown is not None
    words = re.sub(r"<[^>]+>|\s+", " ", shown)
    for part in ("MiniLM &lt;L6&gt;", "a &amp; b", "97%", "stage 0", "more workers"):
        assert part in words
    assert str(VIEW) == (
        "MiniLM <L6>\n"
        "  layout: a & b\n"
        "  partitions: read 3%, forward 97%\n"
        "  stage 0: forward 80%, idle 20%\n"
        "  compute-bound\n"
        "  more workers"
    )


def test_each_part_stands_in_its_column() -> None:
    shown = VIEW.html()
    assert shown is not None
    cells = re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", shown)
    assert cells[:4] == ["", "read", "forward", "idle"]
    assert cells[-8:] == ["partitions", "3%", "97%", "", "stage 0", "", "80%", "20%"]


def test_text_has_the_colour_of_the_page() -> None:
    """Tables do not inherit it everywhere; nothing else may set one."""
    shown = VIEW.html()
    assert shown is not None
    assert re.findall(r"[^-]color: (\w+)", shown) == ["inherit"]


def test_a_layout_is_a_table() -> None:
    shown = Layout(stages=["<a>"], window=4)._repr_html_()
    assert shown is not None
    assert re.search(r">window</th>\s*<td[^>]*>4</td>", shown)
    assert "&lt;a&gt;" in shown


def test_without_jinja_there_is_the_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from dask_infer.views import view

    view._template.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    for name in [name for name in sys.modules if name.startswith("dask.widgets")]:
        monkeypatch.delitem(sys.modules, name)
    assert render("infer_view.html.j2", view=VIEW, parts=[]) is None
    assert Layout()._repr_html_() is None
    assert repr(Layout()).startswith("Layout(replicas=")
