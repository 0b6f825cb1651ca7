"""Who may import whom, read from the source: ARCHITECTURE, "Rooms"."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "dask_infer"
MODULES = sorted(PACKAGE.rglob("*.py"))

#: A room may import from its own and from lower levels, never from a higher one.
LEVELS = (
    {"spec", "errors", "config", "views"},
    # Arithmetic stands low: the coordinator of `pipeline` plans with it.
    {"device", "metrics", "plan"},
    {"model", "batch", "faults", "_dask"},
    # The scheduler's side; the first task of a worker has it registered.
    {"dashboard"},
    {"replica"},
    {"run", "pipeline"},
    {"graph", "client"},
    {"accessor", "watching"},
    {"cli", "__init__"},
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}

#: Rooms that know nothing of Dask, so that they are tested without it.
WITHOUT_DASK = ("batch", "model", "faults", "plan", "metrics")

#: Rooms that never import torch.
WITHOUT_TORCH = ("spec", "plan", "errors", "config", "metrics", "dashboard", "watching")


@functools.cache
def tree(module: Path) -> ast.Module:
    return ast.parse(module.read_text())


@functools.cache
def imports(module: Path) -> frozenset[str]:
    """Every module that `module` imports anywhere, as absolute dotted names."""
    return frozenset(imported(module))


def imported(module: Path) -> Iterator[str]:
    here = ["dask_infer", *module.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = here[: len(here) - node.level + 1] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


def dotted(module: Path) -> str:
    """Absolute name of a module."""
    parts = module.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of two modules or more (Tarjan 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = low[module] = len(order)
        stack.append(module)
        for used in sorted(graph[module]):
            if used not in order:
                visit(used)
                low[module] = min(low[module], low[used])
            elif used in stack:
                low[module] = min(low[module], order[used])
        if low[module] == order[module]:
            start = stack.index(module)
            component = stack[start:]
            del stack[start:]
            if len(component) > 1:
                found.append(sorted(component))

    for module in sorted(graph):
        if module not in order:
            visit(module)
    return found


def room(module: Path) -> str:
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def name(module: Path) -> str:
    return module.relative_to(PACKAGE).as_posix()


def top(module: str) -> str:
    return module.partition(".")[0]


def modules_of(*rooms: str) -> list[Path]:
    return [module for module in MODULES if room(module) in rooms]


def test_every_room_has_a_level() -> None:
    assert {room(module) for module in MODULES} <= set(LEVEL)


def importing(rooms: Iterable[str], wrong: Callable[[str], bool]) -> list[str]:
    """Which modules of `rooms` import what is `wrong`, and what that is."""
    return [
        f"{name(module)}: {used}"
        for module in modules_of(*rooms)
        for used in sorted(imports(module))
        if wrong(used)
    ]


def test_imports_point_one_way() -> None:
    for level, rooms in enumerate(LEVELS):
        above = {f"dask_infer.{room}" for room in set().union(*LEVELS[level + 1 :])}
        assert not importing(rooms, functools.partial(is_within, above))


def is_within(rooms: set[str], used: str) -> bool:
    return ".".join(used.split(".")[:2]) in rooms


def test_rows_and_models_know_nothing_of_dask() -> None:
    private = "dask_infer._dask"
    wrong = {"dask", "distributed"}
    assert not importing(WITHOUT_DASK, lambda u: top(u) in wrong or u == private)


def test_nouns_and_plans_know_nothing_of_torch() -> None:
    assert not importing(WITHOUT_TORCH, lambda used: top(used) == "torch")


def test_nouns_and_plans_need_only_the_standard_library() -> None:
    known = {*sys.stdlib_module_names, "dask_infer"}
    assert not importing(("spec", "plan"), lambda used: top(used) not in known)


def test_no_circle_is_left() -> None:
    """Imports inside functions and for type checkers count like those of the file."""
    modules = {dotted(module): module for module in MODULES}
    graph = {}
    for module, path in modules.items():
        used = imports(path) & set(modules)
        # `from package import module` uses the module, not what the package offers.
        used -= {package for package in used if is_source_only(package, path, modules)}
        graph[module] = used - {module}
    found = circles(graph)
    assert not found, "\n".join(
        f"{module} imports {sorted(graph[module] & set(circle))}"
        for circle in found
        for module in circle
    )


def is_source_only(package: str, path: Path, modules: Mapping[str, Path]) -> bool:
    """Whether a file imports from a package its modules only, none of its names."""
    taken: list[str] = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            taken += [alias.name for alias in node.names if alias.name == package]
        elif isinstance(node, ast.ImportFrom) and node.module == package:
            taken += [f"{package}.{alias.name}" for alias in node.names]
    return all(name in modules and name != package for name in taken)


def is_private_dask(imported: str) -> bool:
    parts = imported.split(".")
    return parts[0] in {"dask", "distributed"} and any(
        part.startswith("_") and not part.startswith("__") for part in parts
    )


def test_private_dask_is_imported_in_one_place() -> None:
    assert not importing(set(LEVEL) - {"_dask"}, is_private_dask)


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "sentence_transformers", "sklearn", "onnx"}
    script = f"import dask_infer, sys; print(*{heavy} & sys.modules.keys())"
    call = [sys.executable, "-c", script]
    found = subprocess.run(call, check=True, cwd=PACKAGE.parent, capture_output=True)
    assert not found.stdout.strip()
