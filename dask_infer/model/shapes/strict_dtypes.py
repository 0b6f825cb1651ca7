"""A mode that fake kernels run under: as strict about dtypes as real ones are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    unset_fake_temporarily,
)
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from dask_infer.model.shapes.trace_errors import MixedDtypes


class StrictDtypes(TorchDispatchMode):
    """Refuses dtypes that real kernels refuse and fake ones take together."""

    #: Kernels whose tensors must all be of one dtype.
    ALIKE = frozenset(("mm", "addmm", "bmm", "baddbmm", "addmv", "mv", "dot", "linear"))
    #: Kernels that take wider weights beside float16 and bfloat16, else one dtype.
    NORMS = frozenset(("native_layer_norm", "native_batch_norm", "native_group_norm"))

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        #: What the last failing kernel said.
        self.failure: Exception | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        packet = getattr(func, "overloadpacket", func)
        try:
            self._check(getattr(packet, "__name__", ""), args)
            return func(*args, **(kwargs or {}))
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            leaves = pytree.arg_tree_leaves(*args, **(kwargs or {}))
            if not any(isinstance(leaf, FakeTensor) for leaf in leaves):
                with unset_fake_temporarily():  # constants, as TorchScript folds them
                    return func(*args, **(kwargs or {}))
            self.failure = error
            raise
        except Exception as error:
            self.failure = error
            raise

    def _check(self, kernel: str, args: Sequence[Any]) -> None:
        if kernel == "embedding" and args[1].is_floating_point():  # torch below 2.13
            raise RuntimeError(
                "Expected tensor for argument #1 'indices' to have one of the "
                f"following scalar types: Long, Int; but got {args[1].dtype} instead"
            )
        if kernel not in self.ALIKE and kernel not in self.NORMS:
            return
        tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
        names = dict.fromkeys(
            str(tensor.dtype).removeprefix("torch.") for tensor in tensors
        )
        if len(names) < 2 or (kernel in self.NORMS and tensors[0].dtype.itemsize == 2):
            return
        raise MixedDtypes(f"it computes {' with '.join(names)}")

    def original(self, error: Exception) -> Exception:
        """Return the kernel's own error where TorchScript has replaced its text."""
        replaced = "TorchScript interpreter" in str(error)
        return self.failure if replaced and self.failure is not None else error
