"""Names and sizes, read from the source: names once, small files, plain words."""

from __future__ import annotations

import ast
import functools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "dask_infer"
MODULES = sorted(PACKAGE.rglob("*.py"))

#: Lines of a file, and files of a folder, at most.
LINES, FILES = 400, 13

#: Words that stopped readers, and the term of the field for each.
OLD_WORDS = {
    "blame": "classify, or pickle_diagnosis",
    "climb": "HillClimber",
    "door": "limit, entry",
    "doors": "limit, entry",
    "fleet": "Group",
    "hollow": "on_meta",
    "laid": "JoinedOutput",
    "lane": "Runner",
    "ledger": "GroupCoordinator",
    "made_up": "synthetic",
    "nobody": "no_one, or what is missing",
    "parcel": "InFlight, or PendingBlob",
    "placing": "Placer, placement",
    "quiet": "stderr_filter",
    "roster": "Group, placement",
    "skeleton": "fake_model",
    "swallowed": "suppressed_errors",
    "switchboard": "MicrobatchComms",
    "tally": "ErrorBudget",
    "ticket": "group request",
    "tired": "too_many_timeouts",
    "told": "describe, known, declared",
    "verdict": "Outcome",
    "way": "Header, route, path",
    "weigh": "observe_row_bytes",
}

#: Class names that are too general, or an old word.
OLD_CLASSES = {
    *("Code", "Exchange", "Feed", "Held", "Line", "Load", "Lost", "Made", "Opened"),
    *("Part", "Patience", "Ref", "Shared", "Site"),
}


def name(module: Path) -> str:
    return module.relative_to(PACKAGE).as_posix()


@functools.cache
def nodes(module: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(module.read_text())))


def identifiers(module: Path) -> Iterator[str]:
    """Every name that the module defines, imports or uses, and its own."""
    yield module.stem
    for node in nodes(module):
        for field in ("name", "id", "attr", "arg", "asname"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                yield value


@functools.cache
def words(identifier: str) -> str:
    """The words of an identifier, in small letters, between underscores."""
    found = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", identifier)
    return f"_{'_'.join(found).lower()}_"


def classes(module: Path) -> list[str]:
    return [node.name for node in nodes(module) if isinstance(node, ast.ClassDef)]


def test_names_are_the_words_of_the_field() -> None:
    old = [
        f"{name(module)}: {identifier}, say {term}"
        for module in MODULES
        for identifier in set(identifiers(module))
        for word, term in OLD_WORDS.items()
        if f"_{word}_" in words(identifier)
    ]
    assert not old, "\n".join(old)


def test_no_class_has_an_old_name() -> None:
    assert not {(c, name(m)) for m in MODULES for c in classes(m) if c in OLD_CLASSES}


def test_no_file_name_stands_twice() -> None:
    stems = Counter(m.name for m in MODULES if m.name != "__init__.py")
    assert not {stem for stem, n in stems.items() if n > 1}


def test_no_class_name_stands_twice() -> None:
    counts = Counter(c for m in MODULES for c in classes(m))
    twins = {c for c, n in counts.items() if n > 1}
    assert not {(c, name(m)) for m in MODULES for c in classes(m) if c in twins}


def test_files_are_short() -> None:
    lines = {name(m): m.read_text().count("\n") for m in MODULES}
    assert not {m: n for m, n in lines.items() if n > LINES}


def test_folders_hold_a_dozen_files() -> None:
    counts = Counter(name(m.parent) for m in MODULES if m.name != "__init__.py")
    assert not {f: n for f, n in counts.items() if n > FILES}
