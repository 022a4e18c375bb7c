"""In which number format and memory layout do a network's passes run?

``run_as`` attaches the answer to the network itself, so every phase's passes follow the recipe
without a word about it. Training passes run under autocast; evaluation and re-estimated BatchNorm
statistics stay in float32, so a 16-bit training is measured like any other. Parameters, step
sizes and optimizer states are float32 always, and the quantizer computes in float32 whatever it
is handed: v / s has 8 significant bits in bfloat16, too few for 6-bit codes.
"""

from __future__ import annotations

import os
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trainers.loss_scale import LossScale
from trainers.recipes import OptimizerConfig

Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class _Passes:
    """Hooks around every forward pass of a network.

    Args:
        precision: of training passes.
        channels_last: lay images out as the convolutions want them.
        always: evaluation passes too (a frozen teacher has no others).
    """

    def __init__(self, precision: Precision, *, channels_last: bool, always: bool) -> None:
        self.dtype = _DTYPES.get(precision)
        self.channels_last, self.always = channels_last, always
        self.loss_scale = LossScale() if precision == "fp16" and not always else None
        self._autocast: torch.autocast | None = None

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Convert the images and enter autocast."""
        images: Tensor = args[0]
        if self.channels_last and images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        if self.dtype is not None and (module.training or self.always):
            self._autocast = torch.autocast(images.device.type, self.dtype)
            self._autocast.__enter__()
        return (images, *args[1:])

    def after(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Leave autocast, also after an error; losses are taken in float32."""
        if self._autocast is None:
            return None
        self._autocast.__exit__(None, None, None)
        self._autocast = None
        return output.float() if isinstance(output, Tensor) else output


def run_as(model: nn.Module, recipe: OptimizerConfig, *, always: bool = False) -> None:
    """Make ``model`` run as ``recipe`` says from now on.

    Args:
        model: on its device, quantized already if it ever is.
        recipe: ``precision``, ``channels_last`` and ``deterministic`` are read.
        always: for a network that only ever evaluates.
    """
    _set_determinism(on=recipe.deterministic)
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)
    if recipe.channels_last or recipe.precision != "fp32":
        passes = _Passes(recipe.precision, channels_last=recipe.channels_last, always=always)
        model.register_forward_pre_hook(passes.before)
        model.register_forward_hook(passes.after, always_call=True)


def loss_scale_of(model: nn.Module) -> LossScale | None:
    """The loss scale that the passes of ``model`` need; None except in float16."""
    for hook in model._forward_pre_hooks.values():
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, _Passes):
            return owner.loss_scale
    return None


def backward(model: nn.Module, loss: Tensor) -> None:
    """The backward pass of every phase: ``loss.backward()``, scaled where ``model`` needs it.

    Without gradients (a pass that only starts step sizes) there is nothing to do.
    """
    if not torch.is_grad_enabled():
        return
    scale = loss_scale_of(model)
    if scale is not None:
        scale.used = True
        loss = loss * scale.value
    loss.backward()


def _set_determinism(*, on: bool) -> None:
    """Only algorithms that give the same bits twice, or whatever is fastest on a GPU.

    On a CPU every operation used here is deterministic already.
    """
    if on != torch.are_deterministic_algorithms_enabled():
        # cuBLAS reads it when it starts; fresh memory need not be filled, nothing reads it.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(on)
    torch.backends.cudnn.benchmark = not on
