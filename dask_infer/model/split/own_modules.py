"""The model's own modules in place of the steps that were exported from them.

They keep the fused kernels that layers choose for themselves, which an export does not.
One is put in only where the exported graph proves that it is the same: everything its
steps read from outside was an argument of its call, and everything others read of them
was returned by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch.export.graph_signature import ConstantArgument
from torch.utils import _pytree as pytree

from dask_infer.model.split.exported import Graph
from dask_infer.model.split.program import (
    Held,
    Program,
    Ref,
    Size,
    Step,
    leaves,
    reads,
    replaced,
)
from dask_infer.model.split.stage import leaf

_PLAIN = (type(None), bool, int, float, str)


@dataclass(frozen=True)
class _Call:
    """One module's call that may take the place of its steps."""

    path: str
    first: int
    members: frozenset[int]
    steps: tuple[Step, ...]


def with_modules(
    graph: Graph, paths: Iterable[str], owned: Mapping[str, frozenset[str]]
) -> tuple[Program, dict[int, int], list[str]]:
    """Put modules in the place of their steps.

    Parameters
    ----------
    paths
        Modules to put in, none inside another.
    owned
        Names of the parameters and buffers of each.

    Returns
    -------
    program
        With the modules that could be put in.
    places
        Where each step of the graph is now.
    used
        The modules put in.
    """
    users = _users(graph.program)
    calls = {}
    for path in paths:
        call = _call(graph, path, owned[path], users)
        if call is not None:
            calls[call.first] = call
    steps: list[Step] = []
    places: dict[int, int] = {}
    gone = {place for call in calls.values() for place in call.members}
    for place, step in enumerate(graph.program.steps):
        places[place] = len(steps)
        if place in calls:
            steps += calls[place].steps
        elif place not in gone:
            steps.append(step)
    places[len(graph.program.steps)] = len(steps)
    program = replace(graph.program, steps=tuple(steps))
    return program, places, [call.path for call in calls.values()]


def _users(program: Program) -> dict[str, list[int]]:
    """Return the places that read each value; the output is past the last."""
    users: dict[str, list[int]] = {}
    for place, step in enumerate(program.steps):
        for read in reads(step):
            if isinstance(read, Ref):
                users.setdefault(read.name, []).append(place)
    for value in program.outputs:
        if isinstance(value, Ref):
            users.setdefault(value.name, []).append(len(program.steps))
    return users


def _call(
    graph: Graph, path: str, owned: frozenset[str], users: Mapping[str, list[int]]
) -> _Call | None:
    signature = graph.calls.get(path)
    members = frozenset(graph.members.get(path, ()))
    if signature is None or path in graph.repeated or not members:
        return None
    steps = graph.program.steps
    made = {steps[place].name: place for place in members}
    given = {a.name for a in signature.inputs if not isinstance(a, ConstantArgument)}
    first = min(members)
    before = {step.name for step in steps[:first]} | set(graph.program.inputs)
    if not given - {""} <= before or not _reads_only(
        graph, members, made, given, owned
    ):
        return None
    returned = {getattr(argument, "name", "") for argument in signature.outputs}
    for name in made:
        if set(users.get(name, ())) - members and name not in returned:
            return None
    arguments = _arguments(signature)
    if arguments is None:
        return None
    return _Call(path, first, members, _steps(path, signature, arguments, made))


def _reads_only(
    graph: Graph,
    members: frozenset[int],
    made: Mapping[str, int],
    given: set[str],
    owned: frozenset[str],
) -> bool:
    """Whether the steps read nothing that the module would not find by itself."""
    for place in members:
        for read in reads(graph.program.steps[place]):
            if isinstance(read, Held):
                # What has no name in the model is a constant of the code.
                if read.name not in owned and read.name in graph.named:
                    return False
            elif read.name in made or read.name in given:
                continue
            elif not isinstance(graph.program.values.get(read.name), Size):
                return False  # the module asks its own arguments for their sizes
    return True


def _arguments(signature: Any) -> tuple[Any, Any] | None:
    """Return args and kwargs of the call; None where they hold unknown objects."""
    flat = [
        a.value if isinstance(a, ConstantArgument) else Ref(a.name)
        for a in signature.inputs
    ]
    try:
        args, kwargs = pytree.tree_unflatten(flat, signature.in_spec)
    except Exception:
        return None
    if any(not isinstance(x, (Ref, *_PLAIN)) for x in leaves((args, kwargs))):
        return None
    return args, kwargs


def _steps(
    path: str, signature: Any, arguments: tuple[Any, Any], made: Mapping[str, int]
) -> tuple[Step, ...]:
    """Return the call, and what takes its output apart, under the values' own names."""
    args, kwargs = (replaced(part, lambda x: x) for part in arguments)
    returned = [getattr(argument, "name", "") for argument in signature.outputs]
    if signature.out_spec.is_leaf() and returned[0] in made:
        return (Step(returned[0], "module", path, args, kwargs),)
    whole = f"{path.replace('.', '_')}_output"
    found = {name: place for place, name in enumerate(returned) if name in made}
    parts = (
        Step(name, "function", leaf, (Ref(whole), place))
        for name, place in found.items()
    )
    return (Step(whole, "module", path, args, kwargs), *parts)
