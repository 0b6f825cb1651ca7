"""Linear layers in whole numbers of 8 bits, for ``dtype="int8"`` on the CPU.

Weights are rounded when the model is loaded, each output channel on a scale of its own;
inputs when a batch comes, all on one scale; sums are made in 32 bits and leave the
layer as float32. Everything else of the model runs in float32.

`torch.ao.quantization.quantize_dynamic` does the same by the same kernels and raises a
DeprecationWarning (torch 2.13.0), so the layer here calls the kernels itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dask_infer.errors import ModelLoadError
from dask_infer.model.runtime.loaded_model import LoadedModel, ModuleModel

#: Largest whole number of a weight: symmetric, so that zero stays zero.
LARGEST = 127


class QuantizedLinear(nn.Module):
    """What `nn.Linear` computes, on rounded weights and inputs.

    Parameters
    ----------
    layer
        The layer whose weights are taken; float32.
    """

    in_features: int
    out_features: int

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight = layer.weight.detach()
        scale = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny)
        scale = scale / LARGEST
        whole = torch.round(weight / scale[:, None]).clamp(-LARGEST, LARGEST)
        # Through the operator: the function of that name warns.
        rounded = torch.ops.aten._make_per_channel_quantized_tensor(
            whole.to(torch.int8), scale, torch.zeros_like(scale, dtype=torch.int64), 0
        )
        bias = None if layer.bias is None else layer.bias.detach().clone()
        self._packed = torch.ops.quantized.linear_prepack(rounded, bias)
        self.eval()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return ``(..., out_features)`` in float32."""
        # Without the reduced range sums overflow on processors without VNNI.
        output = torch.ops.quantized.linear_dynamic(input.float(), self._packed, True)
        assert isinstance(output, torch.Tensor)
        return output

    @property
    def weight(self) -> torch.Tensor:
        """The rounded weights as floats, for models that look at their layers."""
        weight: torch.Tensor = self._unpacked()[0].dequantize()
        return weight

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias."""
        bias: torch.Tensor | None = self._unpacked()[1]
        return bias

    @property
    def nbytes(self) -> int:
        """Bytes of the rounded weights, their scales and the bias."""
        numbers = 4 * self.out_features * (1 + (self.bias is not None))
        return self.in_features * self.out_features + numbers

    def extra_repr(self) -> str:
        """Say its sizes, as `nn.Linear` does."""
        return f"in_features={self.in_features}, out_features={self.out_features}"

    def _unpacked(self) -> Any:
        return torch.ops.quantized.linear_unpack(self._packed)


def quantize(model: LoadedModel) -> None:
    """Exchange the linear layers of a model that has no other user.

    Raises
    ------
    ModelLoadError
        Where it does not live on the CPU or no layer of it can be exchanged.
    """
    what = f'model "{model.spec.name}" cannot run with dtype="int8"'
    if model.device.type != "cpu":
        raise ModelLoadError(
            f"{what} on {model.device}: torch has its kernels on the CPU only; pass "
            'device="cpu", or dtype="bfloat16"'
        )
    module = model.target
    if not isinstance(model, ModuleModel) or isinstance(module, torch.jit.ScriptModule):
        raise ModelLoadError(
            f"{what}: the layers of a {model.spec.kind} model cannot be exchanged; "
            "pass the torch module itself"
        )
    made = _exchange(module)
    if not made:
        raise ModelLoadError(
            f"{what}: it has no torch.nn.Linear layer, and others are not rounded; "
            'leave out dtype=, or pass "bfloat16"'
        )
    model.quantized(sum(layer.nbytes for layer in made))


def _exchange(module: nn.Module) -> list[QuantizedLinear]:
    """Replace every `nn.Linear`, one that is used twice by one layer."""
    made: dict[nn.Module, QuantizedLinear] = {}
    for parent in list(module.modules()):
        for name, layer in list(parent._modules.items()):
            # Subclasses are something else: attention reads the weights of one.
            if type(layer) is not nn.Linear or nn.parameter.is_lazy(layer.weight):
                continue
            if layer not in made:
                made[layer] = QuantizedLinear(layer)
            setattr(parent, name, made[layer])
        if isinstance(parent, nn.TransformerEncoderLayer):
            # Its fast path takes the layers' weights and never calls them.
            parent.activation_relu_or_gelu = 0
    return list(made.values())
