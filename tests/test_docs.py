"""What the documentation promises; its code blocks run by ``pytest docs``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M)


def test_readme_shows_only_code_that_the_docs_run() -> None:
    run = {block for page in PAGES for block in blocks(page)}
    assert set(blocks(ROOT / "README.md")) <= run


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda p: p.name
)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+\.md)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_make_target_that_is_documented_exists() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    text = (ROOT / "CONTRIBUTING.md").read_text() + (ROOT / "README.md").read_text()
    assert set(re.findall(r"`make (\w+)`", text)) <= targets


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")))
def test_every_example_has_a_quick_mode(example: Path) -> None:
    assert "--quick" in example.read_text()
