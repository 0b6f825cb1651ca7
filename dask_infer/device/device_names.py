"""What a user may call a device."""

from __future__ import annotations

from typing import Any


def check_device_name(name: Any) -> str:
    """Return `name` if it has the form of a device, else raise `ValueError`."""
    kind, _, index = str(name).partition(":")
    known = kind in ("auto", "cpu", "cuda", "mps") and (not index or index.isdigit())
    if not isinstance(name, str) or not known or (index and kind != "cuda"):
        raise ValueError(
            f'device={name!r}: pass "auto", "cpu", "cuda", "cuda:0" or "mps"'
        )
    return name
