"""Checkpoints of Hugging Face models that name or pack their tensors otherwise.

The library's own rules say what a tensor of the file becomes: a prefix more or less,
another name, the experts of a layer in one tensor. They are applied to the tensors that
are asked for alone (`core_model_loading` of transformers 5.24).
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from dask_infer.model.formats.checkpoints.safetensors_checkpoint import (
    Checkpoint,
    Parts,
    TensorNames,
    Tensors,
)
from dask_infer.model.runtime.import_library import import_library
from dask_infer.model.shapes.sandbox import sandbox

#: Names of a file's tensors, each with the pattern of the rule that it matches.
Sources = list[tuple[str, str | None]]


def read_converted(
    files: Iterable[Path],
    names: TensorNames,
    build: Callable[[], Any],
    parts: Parts,
) -> Tensors:
    """Return those of `names` that the files hold, as they are or in another form.

    Parameters
    ----------
    build
        Builds the model that the tensors are for; called on the meta device.
    parts
        What to read of those that the files hold as they are.
    """
    checkpoint = Checkpoint(files)
    found = checkpoint.read(names, parts)
    rest = {name: tied for name, tied in names.items() if name not in found}
    return {**found, **_convert(build, checkpoint, rest)} if rest else found


def _convert(
    build: Callable[[], Any], source: Checkpoint, names: TensorNames
) -> Tensors:
    rules = _Rules(build)
    wanted = {n: name for name, tied in names.items() for n in (name, *tied)}
    found: dict[str, torch.Tensor] = {}
    for target, parts in rules.grouped(source.names).items():
        made = rules.targets(target, parts)
        if not wanted.keys() & made:
            continue
        for name, tensor in rules.made(target, parts, source).items():
            if name in wanted:
                found[wanted[name]] = tensor
    return found


def _library(name: str) -> Any:
    return import_library(f"transformers.{name}", what="the checkpoint")


class _Rules:
    """The conversions of one architecture."""

    def __init__(self, build: Callable[[], Any]) -> None:
        self._loading: Any = _library("core_model_loading")
        mapping = _library("conversion_mapping")
        with sandbox(), torch.device("meta"):
            self._model: Any = build()
        self._state = self._model.state_dict()
        rules = mapping.get_model_conversion_mapping(self._model)
        converter = self._loading.WeightConverter
        self._converters = [rule for rule in rules if isinstance(rule, converter)]
        self._renamings = [rule for rule in rules if not isinstance(rule, converter)]
        self._by_pattern = {
            pattern: rule
            for rule in self._converters
            for pattern in rule.source_patterns
        }

    def grouped(self, names: tuple[str, ...]) -> dict[str, Sources]:
        """Return what each first target is made of: names, and patterns they match."""
        groups = defaultdict(list)
        for name in sorted(names, key=self._loading.dot_natural_key):
            target, pattern = self._renamed(name, self._renamings, self._converters)
            if target not in self._state and name in self._state:
                target, pattern = self._renamed(name, [], [])
            groups[target].append((name, pattern))
        return groups

    def _renamed(
        self, name: str, renamings: list[Any], converters: list[Any]
    ) -> tuple[str, str | None]:
        prefix = self._model.base_model_prefix
        found: tuple[str, str | None] = self._loading.rename_source_key(
            name, renamings, converters, prefix, self._state
        )
        return found

    def targets(self, target: str, parts: Sources) -> set[str]:
        """Return the names of all tensors that are made together."""
        pattern = parts[0][1]
        if pattern is None:
            return {target}
        patterns = self._by_pattern[pattern].target_patterns
        return {target.replace(patterns[0], other) for other in patterns} | {target}

    def made(
        self, target: str, parts: Sources, source: Checkpoint
    ) -> dict[str, torch.Tensor]:
        """Read the parts and make the tensors."""
        pattern = parts[0][1]
        if pattern is None:
            return {target: source.get(parts[-1][0])}
        rule = copy.deepcopy(self._by_pattern[pattern])
        for name, matched in parts:
            rule.add_tensor(target, name, matched, source.get(name))
        made = rule.convert(target, model=self._model, config=self._model.config)
        return {
            name: tensor[0] if isinstance(tensor, list) else tensor
            for name, tensor in made.items()
        }
