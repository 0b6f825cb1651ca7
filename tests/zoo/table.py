"""The zoo as a page of the documentation: ``python -m tests.zoo.table``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tests.zoo.judge import OUTCOMES, Result
from tests.zoo.transformer import LEAKS

PAGE = Path(__file__).parents[2] / "docs" / "zoo.md"

HEAD = """\
# Models that were tried

Every row is a set of models that `tests/zoo` builds, with random weights or fitted
to a few rows, and runs over a dataframe in batches of unequal size; each row's
prediction must equal that of the model on this row alone. Nothing is downloaded.
`python -m tests.zoo.table` writes this page.

- **inferred**: right, with the columns of the result known from the model.
- **with `meta=`**: right; the columns had to be declared, for a reason listed below.
- **refused**: with a reason listed below, at the call or, where only the data tell,
  naming the row.
- **wrong** and **late** (fails only once it runs): must be none.

| models | cases | inferred | with `meta=` | refused | wrong | late |
|---|--:|--:|--:|--:|--:|--:|
"""


def page(results: Iterable[Result]) -> str:
    """Return the page."""
    results = list(results)
    lines = []
    for group in dict.fromkeys(result.group for result in results):
        lines.append(_row(group, [r for r in results if r.group == group]))
    lines.append(_row("**all**", results))
    text = HEAD + "\n".join(lines) + "\n"
    for outcome, title in (("meta", "With `meta=`"), ("refused", "Refused")):
        listed = [r for r in results if r.outcome == outcome]
        if listed:
            text += f"\n## {title}\n\n| reason | cases |\n|---|---|\n"
            text += "\n".join(_reasons(listed)) + "\n"
    return text + _padding() + _classes(results)


def _row(group: str, results: list[Result]) -> str:
    counts = Counter(result.outcome for result in results)
    cells = [str(counts[outcome]) for outcome in OUTCOMES]
    return f"| {group} | {len(results)} | " + " | ".join(cells) + " |"


def _reasons(results: list[Result]) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for result in results:
        by_reason.setdefault(result.reason, []).append(result.name)
    return [
        f"| {reason} | {', '.join(f'`{name}`' for name in names)} |"
        for reason, names in by_reason.items()
    ]


def _padding() -> str:
    """List classes for which a padded batch is not the same as its rows."""
    text = """
## Padding that is seen

These classes let padding into the words beside it whatever the mask says, by their own
code. A batch of rows of unequal length then gives other values than the rows alone, in
plain transformers as well. The library knows these classes, and makes their batches of
rows of equal length. (FSMT masks the future only without its cache of keys and values,
which a forward here never keeps.)

| class | it |
|---|---|
"""
    rows = (f"| `{name}` | {why} |" for name, why in LEAKS.items())
    return text + "\n".join(rows) + "\n"


def _classes(results: list[Result]) -> str:
    """List the architectures by name, as people look for them."""
    text = "\n## By name\n"
    for group in dict.fromkeys(result.group for result in results):
        names = dict.fromkeys(
            result.name.split(",")[0].split("[")[0].split(".")[0]
            for result in results
            if result.group == group
        )
        text += f"\n{group}\n: {', '.join(names)}\n"
    return text


def main() -> None:
    """Run the zoo and write the page."""
    from tests.zoo.goals import everything

    PAGE.write_text(page(everything()))


if __name__ == "__main__":
    main()
