"""Pickles of the user's objects: weights without a copy, code by value.

A dry run of the pickle comes before anything is written: it counts bytes, finds
tensors, and names what cannot be pickled. `torch.save` writes what contains tensors;
everything else is a pickle with its buffers beside it. Both are memory-mapped when they
are read, so that the processes of a host share one copy.
"""

from __future__ import annotations

import functools
import importlib
import io
import mmap
import pickle
import struct
import sys
import types
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import cloudpickle

from dask_infer.errors import ModelLoadError
from dask_infer.model.identity.content_code import version
from dask_infer.model.identity.content_walk import uncompiled
from dask_infer.model.identity.pickle_diagnosis import explain
from dask_infer.model.identity.user_classes import reduce_class, sharing

#: Opens a pickle with buffers: magic, count of parts, their lengths, the parts.
MAGIC = b"daskinf1"
#: What `torch.save` writes is a zip archive.
ZIP = b"PK\x03\x04"
#: Buffers start here and at its multiples, so that arrays are aligned.
ALIGNMENT = 64


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles by value what cannot be imported, and what torch alone refuses."""

    #: Addresses of storages much larger than the tensors that view them.
    loose: frozenset[int] = frozenset()
    #: Takes the user's classes in the pickle, by name.
    classes: dict[str, Any] | None = None

    def reducer_override(self, obj: Any) -> Any:
        """Return how to pickle `obj`; NotImplemented for pickle's default."""
        inner = uncompiled(obj)
        if inner is not obj:
            return _same, (inner,)
        if type(obj) is functools.cached_property:  # holds a lock before Python 3.12
            return _cached_property, (obj.func, obj.attrname)
        if isinstance(obj, _CACHED):
            return self._reduce_cached(obj)
        if isinstance(obj, types.FunctionType) and _is_made_by_installed(obj):
            return _in_its_module(obj, super().reducer_override(obj))
        if isinstance(obj, type):
            return reduce_class(obj, super().reducer_override(obj), self.classes)
        torch = sys.modules.get("torch")
        if torch is not None:
            if isinstance(obj, torch.Tensor):
                return self._reduce_tensor(obj, torch)
            if isinstance(obj, torch.jit.ScriptModule):
                return _load_script, (obj.save_to_buffer(),)
            if isinstance(obj, torch.nn.Module) and _is_parametrized(obj):
                return _bare, (type(obj),), dict(vars(obj))
        return super().reducer_override(obj)

    def _reduce_cached(self, cached: Any) -> Any:
        """Return how to pickle a function with a cache: without what it holds.

        pickle takes it by its name, which no worker has where a notebook made it.
        """
        func = cached.__wrapped__
        reduced: Any = NotImplemented
        if isinstance(func, types.FunctionType) and not _is_made_by_installed(func):
            reduced = super().reducer_override(func)
        if not isinstance(reduced, tuple):
            return NotImplemented
        make, made, state, *_ = reduced
        parameters = cached.cache_parameters()
        return _cached, (make, made, parameters), state, None, None, _fill_cached

    def _reduce_tensor(self, tensor: Any, torch: Any) -> Any:
        is_loose = _address(tensor) in self.loose
        if not is_loose and not tensor._backward_hooks:
            return NotImplemented
        data = tensor.detach()
        data = data.clone() if is_loose else data
        if isinstance(tensor, torch.nn.Parameter):
            data = torch.nn.Parameter(data, requires_grad=tensor.requires_grad)
        vars(data).update(vars(tensor))
        return data.__reduce_ex__(5)


def _same(obj: Any) -> Any:
    return obj


def _is_made_by_installed(func: types.FunctionType) -> bool:
    """Whether the code of a function is an installed package's, importable anywhere."""
    name = func.__globals__.get("__name__")
    home = sys.modules.get(name) if isinstance(name, str) else None
    return home is not None and vars(home) is func.__globals__ and bool(version(name))


def _in_its_module(func: types.FunctionType, reduced: Any) -> Any:
    """Return how to pickle a function that finds its globals where it was made.

    By value, as cloudpickle takes them, they would be copies; some cannot be copied.
    """
    if reduced is NotImplemented or not isinstance(reduced, tuple):
        return reduced
    _, made, (attributes, slots), *_, set_state = reduced
    closure = made[-1]
    name = func.__globals__["__name__"]
    state = attributes, {**slots, "__globals__": {}}
    return _made_in, (name, func.__code__, closure), state, None, None, set_state


def _made_in(module: str, code: types.CodeType, closure: Any) -> Any:
    return types.FunctionType(
        code, vars(importlib.import_module(module)), None, None, closure
    )


def _cached_property(func: Callable[[Any], Any], name: str | None) -> Any:
    made = functools.cached_property(func)
    made.attrname = name
    return made


#: What `functools.cache` and `lru_cache` return.
_CACHED = functools._lru_cache_wrapper


def _cached(make: Any, made: Any, parameters: dict[str, Any]) -> Any:
    """Return a function that may call itself, so it gets its globals later."""
    return functools.lru_cache(**parameters)(make(*made))


def _fill_cached(cached: Any, state: Any) -> None:
    cloudpickle.cloudpickle._function_setstate(cached.__wrapped__, state)
    functools.update_wrapper(cached, cached.__wrapped__)


def _bare(cls: Any) -> Any:
    """Return an instance that takes its state next, whatever its constructor wants."""
    return cls.__new__(cls)


def _load_script(data: bytes) -> Any:
    import torch

    return torch.jit.load(io.BytesIO(data), map_location="cpu")


def _is_parametrized(module: Any) -> bool:
    """Whether torch forbids pickling, for fear of losing what cloudpickle keeps."""
    getstate = getattr(type(module), "__getstate__", None)
    return getattr(getstate, "__module__", "") == "torch.nn.utils.parametrize"


def _address(tensor: Any) -> int:
    """Address of the memory below a plain tensor, else 0."""
    try:
        return int(tensor.untyped_storage().data_ptr())
    except (RuntimeError, NotImplementedError):  # sparse, wrapped or fake
        return 0


# Before anything is written


@dataclass
class DryRun:
    """What the pickle of an object will be."""

    #: Bytes of the pickle, its buffers and its tensors, each memory once.
    nbytes: int = 0
    has_tensors: bool = False
    #: Bytes of each storage by its address.
    storages: dict[int, int] = field(default_factory=dict)
    #: Bytes that tensors view, by storage, each region once.
    viewed: dict[int, dict[object, int]] = field(default_factory=dict)
    #: References to the user's classes, by name.
    classes: dict[str, Any] = field(default_factory=dict)

    def write(self, data: bytes) -> int:
        """Count bytes of the pickle; they go nowhere."""
        self.nbytes += len(data)
        return len(data)

    def add_buffer(self, buffer: pickle.PickleBuffer) -> bool:
        """Count an array of the pickle."""
        self.nbytes += buffer.raw().nbytes
        return False  # out of band: it is counted, not copied

    @property
    def loose(self) -> frozenset[int]:
        """Storages of which less than half is seen by any tensor."""
        return frozenset(
            address
            for address, views in self.viewed.items()
            if 2 * sum(views.values()) < self.storages.get(address, 0)
        )


def dry_run(obj: object, subject: str = "the model") -> DryRun:
    """Try the pickle of `obj` without copying its arrays and tensors.

    Raises
    ------
    ModelLoadError
        If it cannot be pickled; names the part of `subject` that cannot.
    """
    try:
        found = _try(obj)
    except Exception as error:
        raise ModelLoadError(explain(obj, subject, error, _fails)) from error
    found.nbytes += sum(found.storages.values())
    for address in found.loose:
        found.nbytes += sum(found.viewed[address].values()) - found.storages[address]
    return found


def _try(obj: object) -> DryRun:
    found = DryRun()
    _DryPickler(found).dump(obj)
    return found


def _fails(obj: object) -> bool:
    try:
        _try(obj)
    except Exception:
        return True
    return False


class _DryPickler(Pickler):
    def __init__(self, found: DryRun) -> None:
        super().__init__(found, protocol=5, buffer_callback=found.add_buffer)
        self._found, self.classes = found, found.classes

    def _reduce_tensor(self, tensor: Any, torch: Any) -> Any:
        self._found.has_tensors = True
        address = _address(tensor)
        if address and not tensor.is_nested:
            region = (tensor.data_ptr(), tensor.shape)
            views = self._found.viewed.setdefault(address, {})
            views[region] = tensor.numel() * tensor.element_size()
        return super()._reduce_tensor(tensor, torch)

    def persistent_id(self, obj: Any) -> object:
        torch = sys.modules.get("torch")
        if torch is None:
            return None
        typed = isinstance(obj, torch.storage.TypedStorage)
        if not typed and not torch.is_storage(obj):
            return None
        storage = obj._untyped_storage if typed else obj
        self._found.has_tensors = True
        self._found.storages[storage.data_ptr()] = storage.nbytes()
        return "storage"


# Writing


def to_bytes(obj: object, found: DryRun) -> bytes:
    """Pickle of a small object."""
    file = io.BytesIO()
    if found.has_tensors:
        _save(obj, file, found)
    else:
        Pickler(file, protocol=5).dump(obj)
    return file.getvalue()


def to_file(obj: object, path: Path, found: DryRun | None = None) -> None:
    """Pickle an object of any size into a file that can be mapped."""
    found = found or dry_run(obj)
    if found.has_tensors:
        _save(obj, path, found)
        return
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(obj)
    with path.open("wb") as file:
        _write_parts(file, [stream.getbuffer(), *(b.raw() for b in buffers)])


def _save(obj: object, target: Any, found: DryRun) -> None:
    import torch

    kind = type("Pickler", (Pickler,), {"loose": found.loose})
    # torch.save takes the class from a module and subclasses it.
    module = types.SimpleNamespace(__name__="cloudpickle", Pickler=kind)
    torch.save(obj, target, pickle_module=module, pickle_protocol=5)


def _write_parts(file: BinaryIO, parts: list[memoryview]) -> None:
    lengths = [part.nbytes for part in parts]
    file.write(MAGIC + struct.pack(f"<Q{len(parts)}Q", len(parts), *lengths))
    for part in parts:
        file.write(bytes(-file.tell() % ALIGNMENT))
        file.write(part)


# Reading


def from_bytes(data: bytes) -> Any:
    """Object that `to_bytes` wrote."""
    with sharing():
        if data.startswith(ZIP):
            return _torch_load()(io.BytesIO(data))
        return pickle.loads(data)


def from_file(path: Path) -> Any:
    """Object that `to_file` wrote, its arrays and tensors mapped from the file.

    Raises
    ------
    ModelLoadError
        If the file is cut off or was never written by `to_file`.
    """
    with path.open("rb") as file, sharing():
        magic = file.read(len(MAGIC))
        if magic == MAGIC:
            return _load_parts(file, path)
        if not zipfile.is_zipfile(path):
            raise _damaged(path)
        return _torch_load()(path, mmap=True)


def _torch_load() -> Callable[..., Any]:
    import torch

    return functools.partial(torch.load, map_location="cpu", weights_only=False)


def _load_parts(file: BinaryIO, path: Path) -> Any:
    # A private mapping: arrays are writable, and writes stay in this process.
    memory = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    parts = _parts(memory, path)
    return pickle.loads(parts[0], buffers=parts[1:])


def _parts(memory: memoryview, path: Path) -> list[memoryview]:
    try:
        (count,) = struct.unpack_from("<Q", memory, len(MAGIC))
        lengths = struct.unpack_from(f"<{count}Q", memory, len(MAGIC) + 8)
    except struct.error as error:
        raise _damaged(path) from error
    place = len(MAGIC) + 8 * (1 + count)
    parts = []
    for length in lengths:
        place += -place % ALIGNMENT
        parts.append(memory[place : place + length])
        place += length
    if place > memory.nbytes:
        raise _damaged(path)
    return parts


def _damaged(path: Path) -> ModelLoadError:
    return ModelLoadError(
        f"{path} in the content store is damaged; delete it and call predict() again "
        "with the model"
    )
