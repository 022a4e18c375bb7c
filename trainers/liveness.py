"""When is each activation written, and when is it read for the last time?

Every tensor operation of one forward pass is watched, functional ones too (a residual addition is
no module), so the lifetimes hold across branches. Steps number these operations.

What shares memory counts once: views; in-place operations; and an elementwise operation with one
input that nobody reads later, which any runtime fuses or does in place (BatchNorm and ReLU after
a convolution). A sum of two tensors gets memory of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from solvers.tables import TensorLife

# Operations that keep the number of elements but cannot work in place.
_NEEDS_ROOM = ("convolution", "conv2d", "mm", "linear", "pool", "attention", "upsample", "roll")


@dataclass(slots=True)
class _Operation:
    name: str
    reads: tuple[int, ...]
    writes: dict[int, int] = field(default_factory=dict)  # memory -> elements


class ActivationTrace:
    """The operations of one pass over one image, and what they say about memory."""

    def __init__(self) -> None:
        self._operations: list[_Operation] = []
        self._layers: dict[int, list[tuple[int, str]]] = {}
        self._elements: dict[int, int] = {}
        self._read: set[int] = set()
        # Held so that no address is used twice during the pass.
        self._held: list[Tensor] = []

    @contextmanager
    def watching(self, image: Tensor) -> Iterator[None]:
        """Record what happens to ``image`` and to everything computed from it."""
        self._hold(image)
        self._operations.append(_Operation("input", (), {_memory(image): image.numel()}))
        with _Recorder(self):
            yield
        self._held.clear()

    def read_by_layer(self, x: Tensor, layer: str) -> None:
        """Note that ``layer`` is about to read ``x``."""
        self._layers.setdefault(_memory(x), []).append((len(self._operations), layer))

    def record(self, name: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Note one operation; those that touch no activation (of weights only) are left out."""
        self._read.update(_memory(t) for t in inputs)
        reads = tuple(dict.fromkeys(_memory(t) for t in inputs if _memory(t) in self._elements))
        if not reads:
            return
        operation = _Operation(name, reads)
        if "norm" in name:
            outputs = outputs[:1]  # the others are statistics
        for out in outputs:
            # Indices of a max-pooling are no activations.
            if not out.is_floating_point() or out.numel() == 0:
                continue
            self._hold(out)
            operation.writes[_memory(out)] = out.numel()
        self._operations.append(operation)

    def used(self, weight: Tensor) -> bool:
        """Whether any operation read this parameter."""
        return _memory(weight) in self._read

    def lives(self) -> tuple[TensorLife, ...]:
        """Lifetimes of the activations in order of their first step."""
        last_read = {
            memory: step
            for step, operation in enumerate(self._operations)
            for memory in operation.reads
        }
        home: dict[int, int] = {}
        span: dict[int, list[int]] = {}
        for step, operation in enumerate(self._operations):
            for memory in operation.reads:
                span[home[memory]][1] = step
            for memory in operation.writes:
                if memory in home:
                    span[home[memory]][1] = step
                    continue
                source = self._takes_over(operation, memory, step, last_read)
                home[memory] = memory if source is None else home[source]
                span.setdefault(home[memory], [step, step])
        return tuple(
            TensorLife(
                num_elements=max(self._elements[m] for m in home if home[m] == owner),
                first_step=first,
                last_step=last,
                layers=tuple(
                    layer for m in home if home[m] == owner for _, layer in self._layers.get(m, ())
                ),
            )
            for owner, (first, last) in span.items()
        )

    def _takes_over(
        self, operation: _Operation, memory: int, step: int, last_read: dict[int, int]
    ) -> int | None:
        """The memory that this elementwise operation can overwrite, if there is one."""
        if len(operation.reads) != 1 or any(word in operation.name for word in _NEEDS_ROOM):
            return None
        (source,) = operation.reads
        same_size = self._elements[source] == operation.writes[memory]
        return source if same_size and last_read[source] == step else None

    def _hold(self, tensor: Tensor) -> None:
        self._held.append(tensor)
        self._elements.setdefault(_memory(tensor), tensor.numel())


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    def __init__(self, trace: ActivationTrace) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self._trace = trace

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        self._trace.record(str(func), inputs, outputs)
        return out


def _memory(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address
