"""Candidates: the modules before which a model may be cut.

Repeated layers are the places where the least crosses and nothing is torn apart: the
items of lists and sequences, as deep as such lists hold blocks of their own, and the
modules beside them.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

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
        if any(cut.startswith(f"{path}.") for cut in cuts):
            for name, child in layer._modules.items():
                if child is not None:
                    yield from closed(f"{path}.{name}")
        elif not isinstance(layer, _CONTAINERS):
            yield first[id(layer)]

    first = {id(layer): path for path, layer in module.named_modules()}
    found = (layer for path in pieces(module) for layer in closed(path))
    return list(dict.fromkeys(found))


def outermost(module: nn.Module, paths: Sequence[str]) -> list[str]:
    """Return the outermost items of lists around some modules, or else themselves."""
    return list(dict.fromkeys([*items_around(module, p), p][0] for p in paths))


def items_around(module: nn.Module, path: str) -> list[str]:
    """Return the items of lists that a piece is inside of, outermost first."""
    names = path.split(".")
    around = (".".join(names[:count]) for count in range(1, len(names)))
    return [
        item
        for item in around
        if _is_list(module.get_submodule(item.rpartition(".")[0]))
        and not isinstance(module.get_submodule(item), _CONTAINERS)
    ]


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


#: Lists and dictionaries are never called themselves.
_CONTAINERS = (nn.ModuleList, nn.ModuleDict)


def _pieces(module: nn.Module, path: str, *, inside: bool) -> Iterator[str]:
    """Yield pieces; `inside` a repeated layer only lists of blocks are opened."""
    lists = [part for part in module.modules() if _is_list(part)]
    opens = any(map(_holds_blocks, lists)) if inside else bool(lists or not path)
    if not module._modules or not (opens or isinstance(module, _CONTAINERS)):
        if path:
            yield path
        return
    repeats = _is_list(module)
    for name, child in module._modules.items():
        if child is not None:
            below = f"{path}.{name}" if path else name
            yield from _pieces(child, below, inside=inside or repeats)


def _is_list(module: nn.Module) -> bool:
    """Whether it is a list, or modules that a program remembers of one."""
    numbered = type(module) is nn.Module and all(map(str.isdigit, module._modules))
    is_list = numbered or isinstance(module, (nn.Sequential, nn.ModuleList))
    return is_list and len(module._modules) > 1


def _holds_blocks(parts: nn.Module) -> bool:
    """Whether it holds several modules of one class with parts of theirs."""
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
