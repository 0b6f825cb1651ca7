"""One thing to be shown, as text and as HTML that says the same.

HTML goes through Dask's widgets, and has no colours that a dark page would hide.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Names of templates are global in Dask: those here begin with ``infer_``.
TEMPLATES = str(Path(__file__).with_name("templates"))


@dataclass(frozen=True)
class View:
    """A title, lines with names, and sentences.

    Parameters
    ----------
    title
        What it is.
    lines
        A text, or parts with names, for each name.
    sentences
        What is to be said of it, the most important first.
    """

    title: str
    lines: Mapping[str, str | Mapping[str, str]] = field(default_factory=dict)
    sentences: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [self.title]
        for name, value in self.lines.items():
            if not isinstance(value, str):
                value = ", ".join(" ".join(part) for part in value.items())
            lines.append(f"  {name}: {value}")
        return "\n".join([*lines, *(f"  {sentence}" for sentence in self.sentences)])

    def html(self) -> str | None:
        """Return it as a table; None where jinja2 is missing, which shows the text."""
        tables = [value for value in self.lines.values() if not isinstance(value, str)]
        parts = dict.fromkeys(part for table in tables for part in table)
        return render("infer_view.html.j2", view=self, parts=list(parts))


class Viewed:
    """Shown by its views, one below the other."""

    def views(self) -> list[View]:
        """Return them."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return "\n\n".join(map(str, self.views()))

    def _repr_html_(self) -> str | None:
        shown = [view.html() for view in self.views()]
        return None if None in shown else "".join(map(str, shown))


def render(template: str, **values: Any) -> str | None:
    """Return a template of this folder as HTML; None where jinja2 is missing."""
    try:
        return str(_template(template).render(**values))
    except ImportError:
        return None


@functools.lru_cache(maxsize=8)
def _template(name: str) -> Any:
    from dask.widgets import (  # type: ignore[attr-defined]
        TEMPLATE_PATHS,
        get_template,
    )

    if TEMPLATES not in TEMPLATE_PATHS:
        TEMPLATE_PATHS.append(TEMPLATES)
    return get_template(name)
