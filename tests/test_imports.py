"""Who may import whom, read from the source: ARCHITECTURE, "Rooms"."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

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


def imports(module: Path) -> Iterator[str]:
    """Every module that `module` imports anywhere, as absolute dotted names."""
    here = ["dask_infer", *module.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(module.read_text())):
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


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_imports_point_one_way(module: Path) -> None:
    for imported in imports(module):
        parts = imported.split(".")
        if parts[0] != "dask_infer" or len(parts) < 2 or parts[1] not in LEVEL:
            continue
        assert LEVEL[parts[1]] <= LEVEL[room(module)], f"{name(module)}: {imported}"


@pytest.mark.parametrize("module", modules_of(*WITHOUT_DASK), ids=name)
def test_rows_and_models_know_nothing_of_dask(module: Path) -> None:
    used = set(imports(module))
    assert not {"dask", "distributed"} & {top(name) for name in used}
    assert "dask_infer._dask" not in used


@pytest.mark.parametrize("module", modules_of(*WITHOUT_TORCH), ids=name)
def test_nouns_and_plans_know_nothing_of_torch(module: Path) -> None:
    assert "torch" not in {top(used) for used in imports(module)}


@pytest.mark.parametrize("module", modules_of("spec", "plan"), ids=name)
def test_nouns_and_plans_need_only_the_standard_library(module: Path) -> None:
    known = {*sys.stdlib_module_names, "dask_infer"}
    assert {top(used) for used in imports(module)} <= known


def test_no_circle_is_left() -> None:
    """Imports inside functions and for type checkers count like those of the file."""
    modules = {dotted(module): module for module in MODULES}
    graph = {}
    for module, path in modules.items():
        used = set(imports(path)) & set(modules)
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
    for node in ast.walk(ast.parse(path.read_text())):
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


@pytest.mark.parametrize(
    "module", [m for m in MODULES if m.name != "_dask.py"], ids=name
)
def test_private_dask_is_imported_in_one_place(module: Path) -> None:
    assert not [used for used in imports(module) if is_private_dask(used)]


@pytest.mark.parametrize(
    "heavy", ["torch", "transformers", "sentence_transformers", "sklearn", "onnx"]
)
def test_importing_the_package_loads_nothing_heavy(heavy: str) -> None:
    script = f"import dask_infer, sys; sys.exit({heavy!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=PACKAGE.parent)
