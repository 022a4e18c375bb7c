"""At which bits do the n + 1 passes of a joint update run?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from solvers.tables import BitChoices
from trainers.seeds import generator

BitPair = tuple[int, int]


def uniform_passes(choices: BitChoices) -> tuple[BitPair, ...]:
    """The (weight bits, activation bits) of each uniform pass, widest first.

    Candidates are paired by position from the widest down; where one list is shorter (a
    weights-only or activations-only search) its narrowest width goes on.
    """
    weights, acts = choices.weight_bits[::-1], choices.act_bits[::-1]
    num_passes = max(len(weights), len(acts))
    return tuple(
        (weights[min(i, len(weights) - 1)], acts[min(i, len(acts) - 1)]) for i in range(num_passes)
    )


def random_bits(
    layers: Sequence[str],
    choices: BitChoices,
    how: Literal["tied", "separate"],
    seed: int,
    update: int,
) -> dict[str, BitPair]:
    """The bits of every searched layer in the random pass of ``update``; alike on every rank.

    Args:
        layers: searched layer names in execution order.
        choices: candidate bits.
        how: ``tied`` draws one of the uniform pairs per layer (published code), ``separate``
            draws weight and activation bits apart.
        seed: of the run.
        update: number of the update.
    """
    rng = generator(seed, "random-pass", update)

    def draw(count: int) -> list[int]:
        return torch.randint(0, count, (len(layers),), generator=rng).tolist()

    if how == "tied":
        pairs = uniform_passes(choices)
        return {name: pairs[i] for name, i in zip(layers, draw(len(pairs)), strict=True)}
    weights, acts = draw(len(choices.weight_bits)), draw(len(choices.act_bits))
    return {
        name: (choices.weight_bits[w], choices.act_bits[a])
        for name, w, a in zip(layers, weights, acts, strict=True)
    }
