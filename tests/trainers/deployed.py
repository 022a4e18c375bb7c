"""A deployment tool in forty lines: an export's layers and tensors onto a plain network.

It knows the written rules and nothing of the project's quantizers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def deployed(
    model: nn.Module, layers: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]
) -> nn.Module:
    """``model``, a network before wrapping, with the weights and inputs of an export."""
    own = model.state_dict()
    state = {name: value for name, value in tensors.items() if name in own}
    for layer in layers:
        name, form = layer["name"], layer["weight"]
        if form is not None:
            codes, factor = (tensors[f"{name}.weight.{part}"] for part in ("codes", "factor"))
            assert codes.dtype == getattr(torch, form["dtype"])
            assert form["lowest"] <= codes.min() <= codes.max() <= form["highest"]
            assert factor == torch.tensor(form["factor"])
            k = codes.to(torch.float32)
            dorefa = factor * (2 * (k / form["highest"]) - 1)
            state[f"{name}.weight"] = {"step": k * factor, "dorefa": dorefa}[form["rule"]]
        if layer["input"] is not None:
            module = model.get_submodule(name)
            module.forward = _reader(module, layer["input"], tensors[f"{name}.input.step"])
    model.load_state_dict(state)
    return model.eval()


def _reader(module: nn.Module, form: Mapping[str, Any], step: Tensor) -> Any:
    assert step == torch.tensor(form["step"])

    def forward(x: Tensor) -> Tensor:
        if isinstance(module, nn.Conv2d):
            x = F.pad(x, module._reversed_padding_repeated_twice)
        codes = ((x + form["shift"]) / step).round().clamp(form["lowest"], form["highest"])
        x = codes * step - form["shift"]
        if isinstance(module, nn.Linear):
            return F.linear(x, module.weight, module.bias)
        return F.conv2d(
            x, module.weight, module.bias, module.stride, 0, module.dilation, module.groups
        )

    return forward
