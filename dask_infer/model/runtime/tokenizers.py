"""Tokenizers: from what the user gave to something that can be called with texts."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from dask_infer.errors import InputError, ModelLoadError
from dask_infer.model.identity.file_key import existing_path, file_key
from dask_infer.model.runtime.import_library import import_library


class PromptTokenizer:
    """A tokenizer of texts that begin with a prompt."""

    def __init__(self, tokenizer: Any, prompt: str) -> None:
        self.tokenizer = tokenizer
        self.prompt = prompt

    def __getattr__(self, name: str) -> Any:
        if name == "tokenizer":  # not unpickled yet
            raise AttributeError(name)
        return getattr(self.tokenizer, name)

    def __call__(self, texts: Sequence[str], *pairs: Any, **options: Any) -> Any:
        """Tokenise the texts; a prompt stands before the first of a pair."""
        return self.tokenizer([self.prompt + text for text in texts], *pairs, **options)


@dataclass(frozen=True)
class TokenizerDirectory:
    """The directory of a tokenizer, by its content: another one is loaded anew."""

    path: str
    key: str


_loading = threading.Lock()

#: Threads of the tokenizers library, once they are started.
_started: list[int] = []

RAYON = "RAYON_NUM_THREADS"


#: Files that say what a tokenizer returns.
_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".tiktoken")


def check_tokenizer(given: object) -> Any:
    """Return a tokenizer that the user gave, a directory by its content.

    Raises
    ------
    InputError
        If it is neither.
    ModelLoadError
        If there is no such directory.
    """
    if isinstance(given, (str, os.PathLike)):
        path = existing_path(os.fspath(given), "tokenizer: there is no directory")
        if not path.is_dir():
            raise ModelLoadError(f"tokenizer: {path} is a file; pass its directory")
        folders = {path, _first_module(path)}
        files = (f for folder in folders for f in folder.glob("*") if f.is_file())
        read = sorted(file for file in files if file.suffix in _SUFFIXES)
        return TokenizerDirectory(str(path), file_key("tokenizer", path, read))
    if given is None or callable(given):
        return given
    raise InputError(
        f"tokenizer={given!r}: pass a Hugging Face tokenizer, its directory, or a "
        "callable that takes a list of texts"
    )


def load_tokenizer(source: object, *, cores: int = 1) -> Any:
    """Return a callable that turns a list of texts into arrays by name.

    Parameters
    ----------
    source
        A tokenizer of Hugging Face or any callable (returned as it is), or the
        directory of one (loaded once per process).
    cores
        How many cores one call may take; the first tokenizer of a process decides.

    Raises
    ------
    InputError
        If `source` is none of these.
    ModelLoadError
        If the directory holds no tokenizer.
    """
    if not isinstance(source, TokenizerDirectory):
        source = check_tokenizer(source)
    if isinstance(source, TokenizerDirectory):
        with _loading:
            source = _from_directory(source)
    _start_threads(cores)
    return source


@lru_cache(maxsize=16)
def _from_directory(source: TokenizerDirectory) -> Any:
    directory = source.path
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
    words = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    if len(words) < 2:  # transformers 5 makes one of "." at most where files lack
        raise ModelLoadError(
            f"{directory} holds no vocabulary of a tokenizer, as every word would be "
            "unknown; save it there with tokenizer.save_pretrained(directory), or pass "
            "tokenizer="
        )
    _limit(tokenizer, first / "sentence_bert_config.json")
    prompt = _prompt(Path(directory) / "config_sentence_transformers.json")
    return PromptTokenizer(tokenizer, prompt) if prompt else tokenizer


def _prompt(settings: Path) -> str:
    """Return what sentence-transformers puts before each text by default."""
    given = _read(settings) or {}
    return (given.get("prompts") or {}).get(given.get("default_prompt_name")) or ""


def _first_module(directory: Path) -> Path:
    """Where a sentence-transformers pipeline keeps its tokenizer, else `directory`."""
    modules = _read(directory / "modules.json") or [{}]
    return directory / str(modules[0].get("path", ""))


def _limit(tokenizer: Any, settings: Path) -> None:
    """Truncate where sentence-transformers does, often before the model's own limit."""
    longest = (_read(settings) or {}).get("max_seq_length")
    if longest:
        tokenizer.model_max_length = min(tokenizer.model_max_length, int(longest))


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


def _start_threads(cores: int) -> None:
    """Start the threads of the tokenizers library: as many as `cores`.

    It starts them once a process, for all tokenizers, when it first sees a batch, and
    would take every core of the machine. One call at a time uses them (`tokenize`).
    What the environment says comes first. ``TOKENIZERS_PARALLELISM`` is not touched:
    only where it is unset does the library see a fork and do without threads there.
    """
    library = sys.modules.get("tokenizers")
    if library is None or _started or RAYON in os.environ:
        return
    with _loading:
        if _started:
            return
        _started.append(cores)
        os.environ[RAYON] = str(cores)
        try:
            words = library.models.WordLevel({"a": 0}, unk_token="a")
            library.Tokenizer(words).encode_batch(["a", "a"])
        finally:
            del os.environ[RAYON]
