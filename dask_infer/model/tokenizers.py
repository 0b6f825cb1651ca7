"""Tokenizers: from what the user gave to something that can be called with texts."""

from __future__ import annotations

import json
import os
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

from dask_infer.errors import InputError, ModelLoadError
from dask_infer.model.huggingface import import_library

_loading = threading.Lock()


def load_tokenizer(source: object, *, directory: str | None = None) -> Any:
    """Return a callable that turns a list of texts into arrays by name.

    Parameters
    ----------
    source
        A tokenizer of Hugging Face or any callable (returned as it is), the directory
        of one (loaded once per process), or None for the model's own `directory`.
    directory
        Where the model lies, whose tokenizer is meant if `source` is None.

    Raises
    ------
    InputError
        If `source` is none of these.
    ModelLoadError
        If the directory holds no tokenizer.
    """
    _share_cores()
    if source is None:
        source = directory
    if isinstance(source, (str, os.PathLike)):
        with _loading:
            return _from_directory(os.path.realpath(source))
    if callable(source):
        return source
    raise InputError(
        f"tokenizer={source!r}: pass a Hugging Face tokenizer, its directory, or a "
        "callable that takes a list of texts"
    )


@lru_cache(maxsize=16)
def _from_directory(directory: str) -> Any:
    if not os.path.isdir(directory):
        raise ModelLoadError(
            f"tokenizer: {directory} is no directory on this machine; pass the "
            "tokenizer itself, or a directory that every worker sees"
        )
    transformers = import_library("transformers", what="a tokenizer")
    first = _first_module(Path(directory))
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            first, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise ModelLoadError(
            f"{directory} holds no tokenizer that transformers can load: {error}; pass "
            "tokenizer="
        ) from error
    _limit(tokenizer, first / "sentence_bert_config.json")
    return tokenizer


def _first_module(directory: Path) -> Path:
    """Where a sentence-transformers pipeline keeps its tokenizer, else `directory`."""
    modules = directory / "modules.json"
    if not modules.is_file():
        return directory
    return directory / str(json.loads(modules.read_text())[0].get("path", ""))


def _limit(tokenizer: Any, settings: Path) -> None:
    """Truncate where sentence-transformers does, often before the model's own limit."""
    if not settings.is_file():
        return
    longest = json.loads(settings.read_text()).get("max_seq_length")
    if longest:
        tokenizer.model_max_length = min(tokenizer.model_max_length, int(longest))


def _share_cores() -> None:
    """One thread a text where several threads of a pool tokenize at once.

    The tokenizers library starts a pool of its own on every core of the machine.
    """
    pool = _pool(threading.current_thread())
    if pool is None:
        return
    if sum(_pool(thread) == pool for thread in threading.enumerate()) > 1:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _pool(thread: threading.Thread) -> str | None:
    """Name of the thread's pool: all but the number that executors append."""
    stem = thread.name.rstrip("0123456789")
    is_pooled = thread is not threading.main_thread() and stem != thread.name
    return stem if is_pooled and stem.endswith(("-", "_")) else None
