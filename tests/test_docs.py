"""What the documentation promises; its code blocks run by ``pytest docs``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dask_infer import Plan

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dask_infer"
PAGES = sorted((ROOT / "docs").glob("*.md"))


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M)


def test_readme_shows_only_code_that_the_docs_run() -> None:
    run = {block for page in PAGES for block in blocks(page)}
    assert set(blocks(ROOT / "README.md")) <= run


def test_plans_of_the_page_on_planning_are_what_the_planner_says(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names: dict[str, object] = {}
    page = ROOT / "docs" / "planning.md"
    for block in blocks(page):
        exec(block, names)
        assert capsys.readouterr().out in page.read_text()
    assert sum(isinstance(each, Plan) for each in names.values()) == 4


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda p: p.name
)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+\.md)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_paths_of_the_architecture_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    text = text[text.index("## Architecture") : text.index("## How the code reads")]
    paths = set(re.findall(r"(?<![/.\w])[\w-]+(?:/[\w-]+)+(?:\.\w+)?(?![\w<])", text))
    missing = {
        path
        for path in paths
        for base in [ROOT if path.startswith(("docs", "tests", "dask_")) else PACKAGE]
        if not ((base / path).exists() or (base / f"{path}.py").exists())
    }
    assert not missing


def test_every_room_is_in_the_architecture() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rooms = [p for p in PACKAGE.iterdir() if p.is_dir() and not p.name.startswith("__")]
    assert [room.name for room in rooms if f"| `{room.name}/` |" not in text] == []


def test_every_make_target_that_is_documented_exists() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    text = (ROOT / "CONTRIBUTING.md").read_text() + (ROOT / "README.md").read_text()
    assert set(re.findall(r"`make (\w+)`", text)) <= targets


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")))
def test_every_example_has_a_quick_mode(example: Path) -> None:
    assert "--quick" in example.read_text()
