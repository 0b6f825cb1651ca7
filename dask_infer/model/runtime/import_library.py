"""Libraries of the extras, imported where a model needs them."""

from __future__ import annotations

import importlib
import threading
from typing import Any

from dask_infer.errors import ModelLoadError

#: transformers and sentence_transformers keep registries and settings in module-level
#: state: one thread at a time imports them, or builds with them.
one_at_a_time = threading.RLock()


#: Extras of this package by the libraries that they install; each format adds its own.
EXTRAS: dict[str, str] = {}


def remedy_for(module: str) -> str:
    """Return how to have a module that cannot be imported."""
    library = module.partition(".")[0]
    if library in EXTRAS:
        extra = f'"dask-infer[{EXTRAS[library]}]"'
        return f"pip install {extra} on the client and the workers"
    return f"install {library} on the workers or send it with client.upload_file"


def import_library(name: str, *, what: str) -> Any:
    """Import a library, one thread at a time.

    Parameters
    ----------
    name
        The module.
    what
        What needs it, as the error begins.

    Raises
    ------
    ModelLoadError
        If it is not installed; names the extra.
    """
    with one_at_a_time:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise ModelLoadError(
                f"{what} needs {error.name}, which this process cannot import; "
                f"{remedy_for(name)}"
            ) from error
