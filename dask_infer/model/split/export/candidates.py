"""Candidates: the modules before which a model may be cut.

Repeated layers are the places where the least crosses and nothing is torn apart: the
items of lists and sequences, as deep as such lists hold blocks of their own, and the
modules beside them.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Iterator

from torch import nn

from dask_infer.model.split_refusals import CannotSplit


def candidates(module: nn.Module) -> list[str]:
    """Return the paths of the modules before which it is worth to cut."""
    # Without tensors of its own a piece is no reason to cut.
    return [
        path for path in pieces(module) if _owns_tensors(module.get_submodule(path))
    ]


def pieces(module: nn.Module) -> list[str]:
    """Return the paths of the pieces that no automatic cut goes through."""
    found = list(_pieces(module, "", inside=False))
    while len(found) == 1 and (parts := module.get_submodule(found[0])._modules):
        found = [f"{found[0]}.{name}" for name, part in parts.items() if part]
    return found


def opaque_layers(module: nn.Module, cuts: tuple[str, ...]) -> list[str]:
    """Return the first paths of pieces that are exported as one call: without a cut."""

    def closed(path: str) -> Iterator[str]:
        layer = module.get_submodule(path)
        containers = (nn.ModuleList, nn.ModuleDict)
        if not any(cut.startswith(f"{path}.") for cut in cuts):
            if not isinstance(layer, containers):
                yield first[id(layer)]
            return
        for name, child in layer._modules.items():
            if child is not None:
                yield from closed(f"{path}.{name}")

    first = {id(layer): path for path, layer in module.named_modules()}
    found = (layer for path in pieces(module) for layer in closed(path))
    return list(dict.fromkeys(found))


def outermost(module: nn.Module, paths: list[str]) -> list[str]:
    """Return the outermost items of lists around some modules, or else themselves."""
    return list(dict.fromkeys([*items_around(module, p), p][0] for p in paths))


def items_around(module: nn.Module, path: str) -> list[str]:
    """Return the items of lists that a piece is inside of, outermost first."""
    names = path.split(".")
    around = (".".join(names[:count]) for count in range(1, len(names)))
    return [outer for outer in around if _is_item(module, outer)]


def _is_item(module: nn.Module, path: str) -> bool:
    """Whether a module is an item of a list, and no list itself."""
    item = module.get_submodule(path)
    around = module.get_submodule(path.rpartition(".")[0])
    is_list = isinstance(item, (nn.ModuleList, nn.ModuleDict))
    return not is_list and _is_list(around)


def check_cuts(name: str, module: nn.Module, cuts: tuple[str, ...] | None) -> None:
    """Refuse cuts before what is no module, or twice before the same.

    Raises
    ------
    CannotSplit
        Names the cut, and modules of a name like it.
    """
    known = dict(module.named_modules(remove_duplicate=False))
    for cut in cuts or ():
        if not cut or cut not in known:
            names = [path for path in known if path]
            near = difflib.get_close_matches(cut, names, n=3, cutoff=0.4)
            shown = ", ".join(f'"{path}"' for path in near or names[:5])
            raise CannotSplit(
                name,
                f'it has no module "{cut}" to cut before',
                f"did you mean {shown}?" if near else f"its modules are {shown}, ...",
            )
        if (cuts or ()).count(cut) > 1:
            reason = f'"{cut}" is named twice'
            raise CannotSplit(name, reason, "name each module once")


def _pieces(module: nn.Module, path: str, *, inside: bool) -> Iterator[str]:
    """Yield pieces; `inside` a repeated layer only lists of blocks are opened."""
    opens = _has_blocks(module) if inside else _has_list(module) or not path
    # Lists and dictionaries are never called themselves.
    opens = opens or isinstance(module, (nn.ModuleList, nn.ModuleDict))
    if not opens or not module._modules:
        if path:
            yield path
        return
    repeats = _is_list(module)
    for name, child in module._modules.items():
        if child is not None:
            below = f"{path}.{name}" if path else name
            yield from _pieces(child, below, inside=inside or repeats)


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, (nn.Sequential, nn.ModuleList)) and len(module) > 1


def _has_list(module: nn.Module) -> bool:
    return any(_is_list(part) for part in module.modules())


def _has_blocks(module: nn.Module) -> bool:
    """Whether a list inside holds several modules of one class with parts of theirs."""
    return any(_holds_blocks(part) for part in module.modules() if _is_list(part))


def _holds_blocks(parts: nn.Module) -> bool:
    composed = [
        type(part)
        for part in parts.children()
        if any(map(_owns_tensors, part.children()))
    ]
    return any(count > 1 for count in Counter(composed).values())


def _owns_tensors(part: nn.Module) -> bool:
    return next(part.parameters(), None) is not None


def is_sequential(module: nn.Module, layers: Collection[str], path: str = "") -> bool:
    """Whether all code around layers at these paths is that of ``nn.Sequential``."""
    own = type(module).forward is nn.Sequential.forward
    return (
        own
        and not (module._forward_hooks or module._forward_pre_hooks)
        and all(
            (inner := f"{path}{name}") in layers
            or is_sequential(child, layers, f"{inner}.")
            for name, child in module.named_children()
        )
    )
