"""The ``infer`` section of Dask's configuration.

Defaults ship in ``infer.yaml``; the package reads them by `get` only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.config
import yaml
from dask.utils import parse_bytes, parse_timedelta

#: What ships in ``infer.yaml``.
DEFAULTS: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parent / "infer.yaml").read_text()
)


def register() -> None:
    """Merge the shipped defaults below whatever the user has configured."""
    dask.config.update_defaults(DEFAULTS)


def get(key: str) -> Any:
    """Value of ``infer.<key>``."""
    try:
        return dask.config.get(f"infer.{key}")
    except KeyError:
        # `with dask.config.set(...)` around the first import of this package takes
        # the whole section away again when it ends (dask 2026.8.0).
        register()
        return dask.config.get(f"infer.{key}")


def get_bytes(key: str) -> int | None:
    """Value of ``infer.<key>`` in bytes; None where it is unset."""
    value = get(key)
    return None if value is None else int(parse_bytes(value))


def get_seconds(key: str) -> float | None:
    """Value of ``infer.<key>`` in seconds; None where it is unset."""
    value = get(key)
    return None if value is None else float(parse_timedelta(value))


register()
