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

#: What needs the library, as an error begins.
_WHAT = "the checkpoint"


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
    """Make tensors of others, by the conversions of the architecture."""
    loading: Any = import_library("transformers.core_model_loading", what=_WHAT)
    mapping: Any = import_library("transformers.conversion_mapping", what=_WHAT)
    with sandbox(), torch.device("meta"):
        model = build()
    rules = mapping.get_model_conversion_mapping(model)
    kind = loading.WeightConverter
    converters = [rule for rule in rules if isinstance(rule, kind)]
    renamings = [rule for rule in rules if not isinstance(rule, kind)]
    by_pattern = {pattern: r for r in converters for pattern in r.source_patterns}
    wanted = {n: name for name, tied in names.items() for n in (name, *tied)}
    found = {}
    groups = _groups(loading, model, source.names, renamings, converters)
    for target, parts in groups.items():
        pattern = parts[0][1]
        rule = by_pattern.get(pattern)
        patterns = [] if rule is None else rule.target_patterns
        together = {target.replace(patterns[0], other) for other in patterns}
        if wanted.keys().isdisjoint({target} | together):
            continue
        if rule is None:
            made = {target: source.get(parts[-1][0])}
        else:
            rule = copy.deepcopy(rule)
            for name, matched in parts:
                rule.add_tensor(target, name, matched, source.get(name))
            made = rule.convert(target, model=model, config=model.config)
        for name in wanted.keys() & made:
            tensor = made[name]
            found[wanted[name]] = tensor[0] if isinstance(tensor, list) else tensor
    return found


def _groups(
    loading: Any,
    model: Any,
    names: Iterable[str],
    renamings: list[Any],
    converters: list[Any],
) -> dict[str, list[tuple[str, str | None]]]:
    """Return what each first target is made of: names, and patterns they match."""
    prefix, state = model.base_model_prefix, model.state_dict()
    groups = defaultdict(list)
    for name in sorted(names, key=loading.dot_natural_key):
        rules = (renamings, converters)
        target, pattern = loading.rename_source_key(name, *rules, prefix, state)
        if target not in state and name in state:
            target, pattern = loading.rename_source_key(name, [], [], prefix, state)
        groups[target].append((name, pattern))
    return groups
