"""Libraries of the extras, imported where a model needs them."""

from __future__ import annotations

import importlib
import threading
from typing import Any

from dask_infer.errors import ModelLoadError

#: transformers and sentence_transformers keep registries and settings in module-level
#: state: one thread at a time imports them, or builds with them.
one_at_a_time = threading.RLock()


def import_library(name: str, *, what: str, extra: str = "huggingface") -> Any:
    """Import a library, one thread at a time.

    Parameters
    ----------
    name
        The module.
    what
        What needs it, as the error begins.
    extra
        The extra of this package that installs it.

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
                f'pip install "dask-infer[{extra}]" on the client and the workers'
            ) from error
