"""Sphinx configuration; the table of configuration keys is made from the schema."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import yaml

project = "dask_infer"
author = "dask_infer developers"
copyright = "2026, dask_infer developers"
version = release = version_of("dask-infer")

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc"]
exclude_patterns = ["_build", "_generated"]

html_theme = "furo"
html_title = "dask_infer"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False

PACKAGE = Path(__file__).parents[1] / "dask_infer"
READERS = {"client": "client", "worker": "worker", "both": "client and worker"}


def keys(schema: dict[str, Any], *above: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every key of the schema with what it says of it."""
    for name, node in schema["properties"].items():
        if "properties" in node:
            yield from keys(node, *above, name)
        else:
            yield ".".join((*above, name)), node


def default(defaults: Any, key: str) -> str:
    for part in key.split("."):
        defaults = defaults[part]
    return "null" if defaults is None else str(defaults)


def variable(key: str) -> str:
    return "DASK_" + key.upper().replace(".", "__").replace("-", "_")


def key_list() -> str:
    """Markdown of all keys: default, reader, environment variable, meaning."""
    schema = yaml.safe_load((PACKAGE / "infer-schema.yaml").read_text())
    defaults = yaml.safe_load((PACKAGE / "infer.yaml").read_text())
    return "\n".join(
        f"`{key}`\n"
        f": {' '.join(node['description'].split())}\n\n"
        f"  Default `{default(defaults, key)}`, read by {READERS[node['read-by']]}, "
        f"`{variable(key)}`\n"
        for key, node in keys(schema)
    )


generated = Path(__file__).parent / "_generated"
generated.mkdir(exist_ok=True)
(generated / "keys.md").write_text(key_list())
