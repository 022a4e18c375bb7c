"""Streams by name: the same name the same numbers, another name other numbers."""

from __future__ import annotations

import torch

from trainers.seeds import derive, generator


def test_a_stream_is_a_function_of_its_name_alone():
    first = torch.randint(0, 1 << 30, (8,), generator=generator(7, "order", 3))
    torch.manual_seed(123)
    torch.rand(5)
    assert torch.equal(first, torch.randint(0, 1 << 30, (8,), generator=generator(7, "order", 3)))


def test_the_derivation_never_changes():
    # Stored results depend on it: the first 8 bytes of sha256("0/order/1"), halved.
    assert derive(0, "order", 1) == 4489457307835839548


def test_every_part_of_the_address_counts():
    addresses = [
        (seed, *names)
        for seed in range(20)
        for names in (("order",), ("augment",), ("order", 0), ("order", 1), ("augment", 0, 1))
    ]
    derived = {derive(*address) for address in addresses}
    assert len(derived) == len(addresses)
    assert all(0 <= value < 2**63 for value in derived)


def test_a_generator_is_no_part_of_torch_s_own_stream():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    torch.rand(10, generator=generator(0, "x"))
    assert torch.equal(torch.rand(3), expected)
