"""Content of arrays, frames, tensors and torch modules, for the content key.

Raw bytes are hashed in place. Strides, devices and gradients do not change what a model
computes here, and are left out; so is `training` of what will be in ``eval()``.
"""

from __future__ import annotations

import functools
import io
import pickle
import re
import sys
import zipfile
from collections.abc import Callable
from typing import Any

from dask_infer.model.identity.content_walk import Rule, Walk

# NumPy


def _array(walk: Walk, array: Any) -> None:
    import numpy as np

    if type(array) not in (np.ndarray, np.memmap):
        walk.visit_reduced(array)
        return
    # Dtypes of other packages (bfloat16) have the same `str` as any void of their size.
    walk.emit("array", str(array.dtype), array.dtype.str, array.shape)
    if array.dtype.names is not None:  # bytes between fields are garbage
        for name in array.dtype.names:
            _array(walk, array[name])
    elif array.dtype.hasobject or array.dtype.kind == "T":
        walk.visit_all("elements", array.ravel().tolist())
    else:
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        walk.emit_bytes("data", raw.data)


# pandas


def _frame(walk: Walk, frame: Any) -> None:
    walk.emit("frame", type(frame).__name__)
    walk.visit(frame.columns)
    walk.visit(frame.index)
    for place in range(frame.shape[1]):
        _values(walk, frame.iloc[:, place].array)


def _column(walk: Walk, column: Any) -> None:
    """Add a Series, or an Index, which has no labels of its own."""
    walk.emit("column", type(column).__name__)
    walk.visit(column.name)
    walk.visit(getattr(column, "index", None))
    _values(walk, column.array)


def _multi_index(walk: Walk, index: Any) -> None:
    parts = (index.names, index.levels, index.codes)
    walk.visit_all("multi index", map(list, parts))


def _values(walk: Walk, values: Any) -> None:
    walk.emit("values", str(values.dtype))
    if hasattr(values, "categories"):
        walk.visit_all("categories", (values.categories, values.ordered))
        walk.visit(values.codes)
    elif hasattr(values.dtype, "char"):  # a NumPy dtype
        walk.visit(values.to_numpy())
    else:
        walk.visit_all("elements", values.astype(object).tolist())


# torch


def _named(walk: Walk, obj: Any) -> None:
    walk.emit(type(obj).__name__, obj)


def _handle(walk: Walk, obj: Any) -> None:
    walk.emit("handle")  # its number is that of the process


def _storage(walk: Walk, obj: Any) -> None:
    import torch

    _raw(walk, torch.empty(0, dtype=torch.uint8, device=obj.device).set_(obj))


def _typed_storage(walk: Walk, obj: Any) -> None:
    walk.emit("storage", obj.dtype)
    walk.visit(obj._untyped_storage)


def _tensor(walk: Walk, tensor: Any) -> None:
    import torch

    is_parameter = isinstance(tensor, torch.nn.Parameter)
    is_lazy = torch.nn.parameter.is_lazy(tensor)
    shape = None if is_lazy else tuple(tensor.shape)
    walk.emit("tensor", is_parameter, tensor.dtype, shape)
    if is_lazy:
        return
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        walk.visit(type(tensor))
    if hasattr(tensor, "__tensor_flatten__"):
        _flattened(walk, tensor)
        return
    own = {k: v for k, v in vars(tensor).items() if not _NOTES.fullmatch(k)}
    if own:
        walk.visit_state(own)
    _tensor_data(walk, tensor.detach())


#: Attributes of tensors that torch and transformers set.
_NOTES = re.compile("_dynamo_.*|_is_buffer|_is_hf_initialized|persistent")


def _flattened(walk: Walk, tensor: Any) -> None:
    """Add a wrapper subclass (quantised, distributed) by the tensors it wraps."""
    names, context = tensor.__tensor_flatten__()
    walk.visit(context)
    for name in names:
        walk.visit(getattr(tensor, name))


def _tensor_data(walk: Walk, tensor: Any) -> None:
    import torch

    if tensor.is_meta or isinstance(tensor, torch._subclasses.FakeTensor):
        walk.emit("meta")
    elif tensor.is_quantized:
        walk.emit("quantized", tensor.qscheme())
        _instance_parts(walk, tensor)
    elif tensor.layout is not torch.strided:
        walk.emit("layout", tensor.layout)
        _instance_parts(walk, tensor)
    elif not _seen_storage(walk, tensor):
        _raw(walk, tensor)


def _instance_parts(walk: Walk, tensor: Any) -> None:
    """Add sparse and quantised tensors by what torch would rebuild them from."""
    if tensor.layout is sys.modules["torch"].sparse_coo:
        tensor = tensor.coalesce()
    _, arguments = tensor.__reduce_ex__(2)[:2]
    walk.visit(arguments)


def _seen_storage(walk: Walk, tensor: Any) -> bool:
    """Emit the number of equal memory met before: a tie by `.data` or a view."""
    if tensor.numel() == 0:
        return False
    address = (tensor.device, tensor.data_ptr())
    signs = (tensor.is_conj(), tensor.is_neg())  # views whose numbers are others
    place = (*address, *signs, tensor.dtype, tensor.shape, tensor.stride())
    number = walk.storages.get(place)
    if number is None:
        walk.storages[place] = len(walk.storages)
        return False
    walk.emit("same memory", number)
    return True


def _raw(walk: Walk, tensor: Any) -> None:
    from dask_infer.model.runtime.footprint import as_bytes

    walk.emit_bytes("data", as_bytes(tensor.cpu()).data)


# torch modules


def _torch_module(walk: Walk, module: Any) -> None:
    import torch

    if isinstance(module, torch.fx.GraphModule):
        state = _graph(walk, module)
    else:
        walk.visit(type(module))
        state = module_state(module)
    if "_parameters" not in state:  # a __getstate__ of its own
        walk.visit(state)
        return
    if id(module) not in walk.in_eval:
        walk.emit("training", module.training)
    _tensors(walk, state)
    _hooks(walk, state)
    names = _bookkeeping()
    walk.visit_state({k: v for k, v in state.items() if k not in names})
    walk.visit(tuple(state["_modules"]))
    for child in state["_modules"].values():
        walk.visit(child)


#: What compilation notes on a module.
_COMPILATION = ("_compiled_call_impl", "_is_torch_compile")


@functools.cache
def _bookkeeping() -> frozenset[str]:
    """Return the names of what torch notes on modules."""
    import torch

    return frozenset({*vars(torch.nn.Module()), *_COMPILATION})


def module_state(module: Any) -> Any:
    """Return the attributes of a module; parametrized ones refuse to be pickled."""
    import torch

    getstate: Any = type(module).__getstate__
    ours = getstate is torch.nn.Module.__getstate__
    if ours or getstate.__module__ == torch.nn.utils.parametrize.__name__:
        return vars(module)
    return module.__getstate__()


def _tensors(walk: Walk, state: dict[str, Any]) -> None:
    fleeting = state["_non_persistent_buffers_set"]
    for name, parameter in state["_parameters"].items():
        walk.emit("parameter", name)
        walk.visit(parameter)
    for name, buffer in state["_buffers"].items():
        walk.emit("buffer", name, name in fleeting)
        walk.visit(buffer)


def _hooks(walk: Walk, state: dict[str, Any]) -> None:
    """Add forward hooks in order; their numbers are those of the process."""
    kinds = ("_forward_pre_hooks", "_forward_hooks")
    walk.emit("hooks", *(len(state[kind]) for kind in kinds))
    for kind in kinds:
        keywords = state.get(f"{kind}_with_kwargs", {})
        always = state.get(f"{kind}_always_called", {})
        for number, hook in state[kind].items():
            walk.emit("hook", number in keywords, number in always)
            walk.visit(hook)


def _graph(walk: Walk, module: Any) -> dict[str, Any]:
    """Add the code of a traced graph; its class is made anew for every instance."""
    code = module.graph.python_code("self")
    walk.emit("graph", code.src)
    walk.visit_state(dict(code.globals))
    made = {"_graph", "_code", "_lineno_map", "_prologue_start", "meta"}
    return {name: value for name, value in vars(module).items() if name not in made}


# Programs, by what torch would write to a file

#: TorchScript numbers its classes by the process.
_MANGLE = re.compile(r"___torch_mangle_\d+\.?")


def _program(walk: Walk, program: Any) -> None:
    import torch

    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    walk.emit("program")
    walk.emit_bytes("data", buffer.getbuffer())


def _script(walk: Walk, script: Any) -> None:
    walk.emit("script")
    code: list[tuple[str, str]] = []
    with zipfile.ZipFile(io.BytesIO(script.save_to_buffer())) as archive:
        for name in sorted(archive.namelist()):
            data = archive.read(name)
            path = name.partition("/")[2]
            if path.endswith(".pkl"):
                walk.emit("record", path)
                walk.visit(_StructureUnpickler(io.BytesIO(data)).load())
            elif path.startswith("code/") and path.endswith(".py"):
                code.append((_MANGLE.sub("", path), _source(data.decode())))
            elif path.startswith(("data/", "constants/")):
                walk.emit("record", path)
                walk.emit_bytes("data", data)
    walk.visit(sorted(code))


def _source(text: str) -> str:
    """Return TorchScript code; the order of constants is that of a set of strings."""
    classes = _MANGLE.sub("", text).split("\nclass ")
    return "\nclass ".join(map(_sort_constants, classes))


def _sort_constants(text: str) -> str:
    lines = text.split("\n")
    constants = {place for place, line in enumerate(lines) if " : Final[" in line}
    rest = (line for place, line in enumerate(lines) if place not in constants)
    return "\n".join([*sorted(lines[place] for place in constants), *rest])


class _Rebuilt:
    """What a pickle rebuilds, by name, without importing or calling it."""

    def __new__(cls, *args: object) -> _Rebuilt:
        made = super().__new__(cls)
        made.args = args
        return made

    args: tuple[object, ...]

    def __setstate__(self, state: object) -> None:
        self.state = state


class _StructureUnpickler(pickle.Unpickler):
    """Reads a pickle whose order of memo entries differs between processes."""

    def find_class(self, module: str, name: str) -> type:
        return type(_MANGLE.sub("", f"{module}.{name}"), (_Rebuilt,), {})

    def persistent_load(self, place: object) -> object:
        return place


def _torch_rules(torch: Any) -> dict[type, Rule]:
    return {
        torch.Tensor: _tensor,
        torch.nn.Module: _torch_module,
        torch.jit.ScriptModule: _script,
        torch.jit.ScriptFunction: _script,
        torch.export.ExportedProgram: _program,
        torch._ops.OpOverload: _named,
        torch._ops.OpOverloadPacket: _named,
        torch.UntypedStorage: _storage,
        torch.storage.TypedStorage: _typed_storage,
        torch.utils.hooks.RemovableHandle: _handle,
    }


#: Rules for the classes of a library, made once it is imported.
RULES: dict[str, Callable[[Any], dict[type, Rule]]] = {
    "numpy": lambda np: {np.ndarray: _array},
    "pandas": lambda pd: {
        pd.DataFrame: _frame,
        pd.Series: _column,
        pd.Index: _column,
        pd.MultiIndex: _multi_index,
    },
    "torch": _torch_rules,
}
