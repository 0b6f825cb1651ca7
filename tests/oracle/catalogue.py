"""The models that the oracle draws from, by name."""

from __future__ import annotations

from tests.oracle import (
    catalogue_functions,
    catalogue_modules,
    estimators,
    files,
    layers,
    texts,
)
from tests.oracle.entries import Entry

ROOMS = (catalogue_modules, catalogue_functions, texts, estimators, files, layers)
CATALOGUE: dict[str, Entry] = {
    entry.name: entry for room in ROOMS for entry in room.ENTRIES
}
