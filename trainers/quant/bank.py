"""Where do the step sizes of one tensor live, one per candidate bit-width?

LIMPQ's bit-specific indicators s_{w,i} and s_{a,j} (section 3.4) and MetaMix's per-bit activation
steps are one vector per tensor: a bank. The bank quantizes at its current bit-width, starts each
entry from statistics, and scales its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trainers.errors import ModelError
from trainers.quant.lsq import lsq, scale_of_gradient
from trainers.quant.options import QuantOptions
from trainers.quant.reduce import mean_over_ranks

RangeKind = Literal["weight", "act_unsigned", "act_signed", "act_shifted"]

# The minimum of h-swish: x * relu6(x + 3) / 6 at x = -3/2.
HARDSWISH_SHIFT = 0.375
# Widths that mean "leave it in full precision".
FULL_PRECISION = (None, 0, 32)
# v / s is exact to about 24 bits in float32; nothing above 16 can be told from full precision.
_MOST_BITS = 16


def range_of(kind: RangeKind, bits: int) -> tuple[int, int]:
    """(Qn, Qp) of a range at a bit-width.

    Raises:
        ModelError: the width does not exist for that range (a signed range needs 2 bits).
    """
    unsigned = kind in ("act_unsigned", "act_shifted")
    least = 1 if unsigned else 2
    if not least <= bits <= _MOST_BITS:
        raise ModelError(
            f"quantizer: {bits} bits for a range {kind!r}; it takes {least} to {_MOST_BITS} "
            "(0 or 32 leaves the tensor in full precision)"
        )
    if unsigned:
        return 0, 2**bits - 1
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


class StepBank(nn.Module):
    """The learned step sizes of one tensor and the quantizer that uses them.

    Attributes:
        candidates: bit-widths, ascending; entry i of ``steps`` belongs to ``candidates[i]``.
        kind: the range.
        steps: parameter vector of ``len(candidates)`` entries, as learned (never clamped).
        ready: which entries have been initialised.
        bits: current bit-width; None passes the tensor through.
        mix: when set, ``forward`` returns ``mix(bank, x)`` instead (MetaMix's equation 2).
        read_once: set by a layer that is the only reader of what ``forward`` returns.
        is_fixed: the steps are given and never learned, or there are none.
        batch_parts: how many equal parts, ranks times accumulation steps, make the global batch.
    """

    ready: Tensor

    def __init__(
        self,
        candidates: Iterable[int],
        kind: RangeKind,
        *,
        name: str = "",
        options: QuantOptions | None = None,
    ) -> None:
        super().__init__()
        self.candidates = tuple(sorted({b for b in candidates if b not in FULL_PRECISION}))
        self.kind: RangeKind = kind
        self.name = name
        self.options = options or QuantOptions()
        self.batch_parts = 1
        self.read_once = False
        self.is_fixed = not self.candidates
        self.bits: int | None = None
        self.mix: Callable[[StepBank, Tensor], Tensor] | None = None
        self._ranges = {b: range_of(kind, b) for b in self.candidates}
        self._index = {b: i for i, b in enumerate(self.candidates)}
        start = torch.tensor([0.1 / b for b in self.candidates])
        # An empty bank must not appear to DDP as a parameter that never gets a gradient.
        self.steps = nn.Parameter(start, requires_grad=not self.is_fixed)
        self.register_buffer("ready", torch.zeros(len(self.candidates), dtype=torch.bool))
        # Read at every forward; a look at the buffer would stall a GPU.
        self._ready_bits: set[int] = set()
        module: Any = self
        module.register_load_state_dict_post_hook(_read_ready)

    def extra_repr(self) -> str:
        """Candidates, range and current width, for ``print(model)``."""
        return f"candidates={self.candidates}, kind={self.kind}, bits={self.bits}"

    @property
    def active(self) -> tuple[int, ...]:
        """The bit-widths that the next forward pass uses; empty in full precision."""
        if self.mix is not None:
            return self.candidates
        return () if self.bits is None else (self.bits,)

    def set_bits(self, bits: int | None) -> None:
        """Select the bit-width of the next forward passes; None, 0 or 32 is full precision.

        Raises:
            ModelError: not a candidate of this bank.
        """
        if bits in FULL_PRECISION:
            self.bits = None
            return
        if bits not in self._index:
            raise ModelError(
                f"{self.name or 'quantizer'}: {bits} bits were asked for; "
                f"its candidates are {list(self.candidates)}"
            )
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        """Quantize at the current bit-width, or pass through."""
        if self.mix is not None:
            return self.mix(self, x)
        if self.bits is None:
            return x
        # A hook on the bank may keep the output and ask for its gradient.
        return self.quantize(x, self.bits, read_once=self.read_once and not self._forward_hooks)

    def quantize(self, x: Tensor, bits: int, *, read_once: bool = False) -> Tensor:
        """``x`` at ``bits``, whatever the current bit-width is.

        Args:
            x: the tensor.
            bits: one of ``candidates``.
            read_once: see ``lsq``; leave it off unless one product is the only reader.

        Raises:
            ModelError: the entry was never initialised and this is not a training pass.
        """
        self.prepare(x, bits)
        qn, qp = self._ranges[bits]
        is_shifted = self.kind == "act_shifted"
        v = x
        if is_shifted:
            # In 16 bits the sum would be rounded before the quantizer sees it.
            v = (x.float() if x.dtype in (torch.bfloat16, torch.float16) else x) + HARDSWISH_SHIFT
        o = lsq(
            v, self.step_of(bits), qn, qp, self._grad_scale(x, qp),
            compiled=self.options.compiled, read_once=read_once,
        )  # fmt: skip
        return (o - HARDSWISH_SHIFT).to(x.dtype) if is_shifted else o

    def branches(self, x: Tensor) -> list[Tensor]:
        """``x`` at every candidate, in the order of ``candidates``."""
        return [self.quantize(x, bits) for bits in self.candidates]

    def step_of(self, bits: int) -> Tensor:
        """The step size that forward uses at ``bits``: 0-dim, clamped, part of the graph."""
        step = self.steps[self._index[bits]]
        if self.options.step_range is None:
            return step
        low, high = self.options.step_range
        if step.device.type == "cpu" and low <= step.item() <= high:
            return step  # two nodes less per tensor; elsewhere the look would stall the device
        return step.clamp(low, high)

    def values(self) -> dict[int, float]:
        """Bit-width -> stored step size (not clamped), as importance indicators are read."""
        return dict(zip(self.candidates, self.steps.detach().tolist(), strict=True))

    def is_ready(self, bits: int) -> bool:
        """Whether that entry has been initialised."""
        return bits in self._ready_bits

    def prepare(self, x: Tensor, bits: int) -> None:
        """Initialise the entry from ``x`` if this is the first training pass at ``bits``."""
        if bits in self._ready_bits:
            return
        if not self.training:
            raise ModelError(
                f"{self.name or 'quantizer'}: its step size at {bits} bits was never "
                "initialised; call initialize() of the quantized network, or train a step"
            )
        self.initialize(x, bits)

    @torch.no_grad()
    def initialize(
        self,
        x: Tensor,
        bits: int,
        reduce: Callable[[Tensor], Tensor] = mean_over_ranks,
    ) -> None:
        """Set the entry of ``bits`` from the statistics of ``x``, averaged over ranks.

        Raises:
            ModelError: the statistics are not finite.
        """
        self.start_at(bits, reduce(self.start_of(x, bits)).item())

    def start_at(self, bits: int, value: float) -> None:
        """Store a statistic as the step of ``bits``; a tensor of zeros says nothing: 0.1 / b.

        Raises:
            ModelError: it is not finite.
        """
        if not math.isfinite(value):
            raise ModelError(
                f"{self.name or 'quantizer'}: the tensor to start {bits} bits from holds "
                "NaN or infinity; check the weights and the input"
            )
        self.set_step(bits, value if value > 0 else 0.1 / bits)

    @torch.no_grad()
    def set_step(self, bits: int, value: float) -> None:
        """Store a step size and mark it initialised."""
        self.steps[self._index[bits]] = value
        self.ready[self._index[bits]] = True
        self._ready_bits.add(bits)

    @torch.no_grad()
    def fix_to_range(self, x: Tensor) -> None:
        """Give every entry the step whose last level is the largest value of ``x``, for good.

        Raises:
            ModelError: the tensor is not finite.
        """
        largest = (x + HARDSWISH_SHIFT if self.kind == "act_shifted" else x.abs()).max().item()
        self.is_fixed = True
        self.steps.requires_grad_(False)
        for bits in self.candidates:
            self.start_at(bits, largest / self._ranges[bits][1])

    def forget(self) -> None:
        """Mark every entry as not initialised."""
        self.ready.fill_(False)
        self._ready_bits.clear()

    @torch.no_grad()
    def start_of(self, x: Tensor, bits: int) -> Tensor:
        """The statistic that the step of ``bits`` starts from on this rank, 0-dim."""
        is_weight = self.kind == "weight"
        how = self.options.weight_init if is_weight else self.options.act_init
        if how == "constant":
            return torch.tensor(0.1 / bits, device=x.device)
        x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        if self.kind == "act_shifted":
            x = x + HARDSWISH_SHIFT
        if how == "lsq":
            return 2.0 * x.abs().mean() / math.sqrt(self._ranges[bits][1])
        mean, deviation = x.mean(), x.std(correction=1 if x.numel() > 1 else 0)
        widest = torch.maximum((mean - 3 * deviation).abs(), (mean + 3 * deviation).abs())
        start: Tensor = widest / 2 ** (bits - 1)
        return start

    def _grad_scale(self, x: Tensor, qp: int) -> float:
        if not self.options.grad_scale:
            return 1.0
        parts = 1 if self.kind == "weight" else self.batch_parts
        return scale_of_gradient(x.numel() * parts, qp)


def _read_ready(bank: Any, _: object) -> None:
    flags = bank.ready.tolist()
    bank._ready_bits = {b for b, flag in zip(bank.candidates, flags, strict=True) if flag}
