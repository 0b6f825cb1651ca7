"""Content of code: functions, classes and modules, for the content key.

Code of an installed package is known by its name and the package's version. Code of
the user (a notebook, a script, a module of a project) is known by what it does: its
bytecode, defaults, closure, and whatever globals it reads, recursively.
"""

from __future__ import annotations

import dis
import enum
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import site
import sys
import sysconfig
import types
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from dask_infer.model.identity.content_walk import Rule, Walk

#: Attributes of a class that come and go without a change of what it does.
_INCIDENTAL = frozenset(
    {
        "__abstractmethods__",
        "__annotate__",
        "__annotate_func__",
        "__annotations__",
        "__annotations_cache__",
        "__dataclass_fields__",
        "__dataclass_params__",
        "__dict__",
        "__doc__",
        "__firstlineno__",
        "__module__",
        "__orig_bases__",
        "__parameters__",
        "__qualname__",
        "__slotnames__",
        "__static_attributes__",
        "__weakref__",
        "_abc_impl",
    }
)

#: Where notebooks and scripts define things, whoever's file started the process.
_INTERACTIVE = frozenset({"", "__main__", "__mp_main__"})

#: Flags of code that change what a call does; others record ``__future__`` imports.
_FLAGS = (
    inspect.CO_VARARGS
    | inspect.CO_VARKEYWORDS
    | inspect.CO_GENERATOR
    | inspect.CO_COROUTINE
    | inspect.CO_ITERABLE_COROUTINE
    | inspect.CO_ASYNC_GENERATOR
)

# Where code comes from


@functools.cache
def _installed_places() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    places = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    places.update(site.getsitepackages(), [site.getusersitepackages()])
    places.add(str(Path(__file__).parents[2]))  # an editable install
    return tuple(Path(place).resolve() for place in places)


@functools.cache
def _is_installed_file(file: str) -> bool:
    parents = Path(file).resolve().parents
    return any(place in parents for place in _installed_places())


def version(module_name: str | None) -> str | None:
    """Version of the installed package of a module; None where it is the user's."""
    top = (module_name or "").partition(".")[0]
    if top in _INTERACTIVE:
        return None
    file = _file(sys.modules.get(top))
    if file is not None and not _is_installed_file(file):
        return None
    if top in sys.stdlib_module_names:
        return "stdlib"
    return None if file is None else _version(top)


def _file(module: object) -> str | None:
    file = getattr(module, "__file__", None)
    if file is None:  # a namespace package has places, and no file
        file = next((f"{place}/." for place in getattr(module, "__path__", ())), None)
    return file if isinstance(file, str) else None


@functools.cache
def _version(top: str) -> str:
    found = getattr(sys.modules.get(top), "__version__", None)
    if isinstance(found, str):
        return found
    try:
        return importlib.metadata.version(top)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _is_importable(obj: Any) -> bool:
    """Whether the qualified name of `obj` leads to it again."""
    found: Any = sys.modules.get(getattr(obj, "__module__", None) or "builtins")
    for name in obj.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is obj


def _emit_installed(walk: Walk, tag: str, obj: Any) -> bool:
    """Add code of an installed package by its name."""
    found = version(obj.__module__ or "builtins")
    if found is None or not _is_importable(obj):
        return False
    walk.emit(tag, obj.__module__, obj.__qualname__, found)
    return True


# Functions


def _function(walk: Walk, func: types.FunctionType) -> None:
    if not _emit_installed(walk, "installed function", func):
        walk.emit("function", func.__module__, func.__qualname__)
        walk.visit(func.__code__)
        walk.visit(func.__defaults__)
        walk.visit(func.__kwdefaults__)
        walk.emit("closure", len(func.__closure__ or ()))
        for cell in func.__closure__ or ():
            _cell(walk, cell)
        walk.visit_state(vars(func))
        # A closure made by an installed package reads what that version reads.
        if version(func.__globals__.get("__name__")) is None:
            _globals(walk, func)


def _cell(walk: Walk, cell: types.CellType) -> None:
    try:
        content = cell.cell_contents
    except ValueError:
        walk.emit("empty cell")
    else:
        walk.visit(content)


def visit_code(walk: Walk, code: types.CodeType) -> None:
    """Add what a code object does; neither file nor line numbers."""
    arguments = code.co_argcount + code.co_kwonlyargcount
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)
    walk.emit("code", *counts, code.co_flags & _FLAGS)
    walk.emit_bytes("bytecode", code.co_code)
    walk.emit_bytes("exceptions", getattr(code, "co_exceptiontable", b""))
    walk.visit(code.co_names)
    walk.visit(code.co_varnames[:arguments])
    walk.visit(code.co_freevars)
    walk.visit(code.co_cellvars)
    walk.visit_all("constants", code.co_consts)


def _globals(walk: Walk, func: types.FunctionType) -> None:
    """Add the globals that a function reads, through attributes of modules too."""
    for name, attributes in sorted(set(_references(func.__code__))):
        if name in func.__globals__:
            walk.emit("reads", name, *attributes)
            _reach(walk, func.__globals__[name], attributes)
    for name in sorted(set(_imports(func.__code__))):
        walk.emit("imports", name, _digest(name))


def _reach(walk: Walk, value: Any, attributes: tuple[str, ...]) -> None:
    """Add ``value.a.b`` as far as it leads through modules of the user."""
    walk.visit(value)
    for name in attributes:
        if not isinstance(value, types.ModuleType) or _is_installed(value):
            return
        value = getattr(value, name, None)
        walk.visit(value)


def _is_installed(module: types.ModuleType) -> bool:
    return version(module.__name__) is not None


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _nested(constant)


def _references(code: types.CodeType) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each global and the attributes read from it at once."""
    for part in _nested(code):
        name: str | None = None
        attributes: tuple[str, ...] = ()
        for step in dis.get_instructions(part):
            if name is not None and step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                attributes += (step.argval,)
                continue
            if name is not None:
                yield name, attributes
            reads = step.opname in ("LOAD_GLOBAL", "LOAD_NAME")
            name, attributes = (step.argval if reads else None), ()


def _imports(code: types.CodeType) -> Iterator[str]:
    for part in _nested(code):
        for step in dis.get_instructions(part):
            if step.opname == "IMPORT_NAME":
                yield step.argval


def _method(walk: Walk, method: types.MethodType) -> None:
    walk.emit("method")
    walk.visit(method.__func__)
    walk.visit(method.__self__)


def _builtin(walk: Walk, func: Any) -> None:
    walk.emit("builtin", func.__name__, func.__qualname__)
    owner = getattr(func, "__self__", None)
    if owner is None or isinstance(owner, types.ModuleType):
        _module_named(walk, getattr(owner, "__name__", None) or func.__module__ or "")
    else:
        walk.visit(owner)


def _descriptor(walk: Walk, descriptor: Any) -> None:
    owner = descriptor.__objclass__
    walk.emit("descriptor", owner.__module__, owner.__qualname__, descriptor.__name__)
    _module_named(walk, owner.__module__)


def _wrapper(walk: Walk, obj: Any) -> None:
    names = ("fget", "fset", "fdel", "func", "__wrapped__")
    walk.visit_all(type(obj).__name__, [getattr(obj, name, None) for name in names])


# Modules


def _module(walk: Walk, module: types.ModuleType) -> None:
    _module_named(walk, module.__name__)
    if sys.modules.get(module.__name__) is not module:  # made by hand: travels whole
        walk.visit_state({k: v for k, v in vars(module).items() if k != "__builtins__"})


def _module_named(walk: Walk, name: str) -> None:
    found = version(name)
    walk.emit("module", name, _digest(name) if found is None else found)


def _digest(name: str) -> str | None:
    """Digest of the file of a module of the user, whether loaded or not."""
    file = _source(name)
    if file is None or _is_installed_file(str(file)):
        return None
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _source(name: str) -> Path | None:
    """Return the file of a module; parents are not imported to find it."""
    top, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # "__main__" has no spec
        return None
    for part in rest:
        places = spec.submodule_search_locations if spec else None
        spec = PathFinder.find_spec(part, places or [])
    return Path(spec.origin) if spec and spec.has_location and spec.origin else None


# Classes


def _class(walk: Walk, cls: type) -> None:
    if not isinstance(cls.__module__, str):  # made in C: its name is all there is
        walk.emit("opaque class", cls.__qualname__)
        return
    if _emit_installed(walk, "installed class", cls):
        return
    walk.users.append(cls)
    walk.emit("class", cls.__module__, cls.__qualname__)
    walk.visit_all("bases", cls.__bases__)
    walk.visit(type(cls))
    if issubclass(cls, enum.Enum):
        walk.visit([(member.name, member.value) for member in cls.__members__.values()])
    walk.visit_state(dict(_behaviour(cls)))


def _behaviour(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the attributes that say what instances of a class do."""
    functions_only = issubclass(cls, enum.Enum)
    for name, value in vars(cls).items():
        if name in _INCIDENTAL or isinstance(value, types.GetSetDescriptorType):
            continue
        if functions_only and not isinstance(value, types.FunctionType):
            continue
        yield name, value


RULES: dict[type, Rule] = {
    type: _class,
    types.FunctionType: _function,
    types.MethodType: _method,
    types.BuiltinFunctionType: _builtin,
    types.ClassMethodDescriptorType: _descriptor,
    types.MethodDescriptorType: _descriptor,
    types.WrapperDescriptorType: _descriptor,
    types.GetSetDescriptorType: _descriptor,
    types.MemberDescriptorType: _descriptor,
    types.ModuleType: _module,
    property: _wrapper,
    staticmethod: _wrapper,
    classmethod: _wrapper,
    functools.cached_property: _wrapper,
    functools._lru_cache_wrapper: _wrapper,
}
