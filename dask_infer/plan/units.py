"""Bytes, seconds and counts in words."""

from __future__ import annotations


def in_bytes(nbytes: float) -> str:
    """Return bytes with a unit: ``"1.5 GiB"``."""
    if nbytes == float("inf"):
        return "unlimited"
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if nbytes >= 2**power:
            return f"{nbytes / 2**power:.1f} {unit}"
    return f"{nbytes:.0f} B"


def in_seconds(seconds: float) -> str:
    """Return seconds with a unit: ``"12.3 ms"``, ``"1.5 h"``."""
    if seconds >= 7200:
        return f"{seconds / 3600:.1f} h"
    if seconds >= 600:
        return f"{seconds / 60:.0f} min"
    if seconds >= 1:
        return f"{seconds:.2f} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds * 1e6:.0f} us"


def count(number: int, noun: str) -> str:
    """Return a number of things: ``"1 stage"``, ``"2 stages"``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
