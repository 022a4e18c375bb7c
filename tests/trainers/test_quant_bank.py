"""Step banks: ranges, starts, the forward clamp, gradient scales, readiness and state."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from trainers.errors import ModelError
from trainers.quant.bank import HARDSWISH_SHIFT, RangeKind, StepBank, range_of
from trainers.quant.options import QuantOptions

NO_SCALE = QuantOptions(grad_scale=False)


@pytest.mark.parametrize(
    ("kind", "bits", "expected"),
    [
        ("weight", 2, (-2, 1)),
        ("act_signed", 8, (-128, 127)),
        ("act_unsigned", 4, (0, 15)),
        ("act_shifted", 3, (0, 7)),
        ("act_unsigned", 1, (0, 1)),
    ],
)
def test_ranges(kind: RangeKind, bits: int, expected: tuple[int, int]) -> None:
    assert range_of(kind, bits) == expected


@pytest.mark.parametrize(("kind", "bits"), [("weight", 1), ("act_signed", 1), ("weight", 17)])
def test_a_range_that_does_not_exist_is_refused(kind: RangeKind, bits: int) -> None:
    with pytest.raises(ModelError, match=f"{bits} bits"):
        StepBank([bits], kind)


def test_starts_of_weights() -> None:
    w = torch.randn(4000, generator=torch.Generator().manual_seed(0)).double() + 0.3
    mean, deviation = w.mean().item(), w.std().item()
    widest = max(abs(mean - 3 * deviation), abs(mean + 3 * deviation))
    expected = {"lsq+": widest / 8, "lsq": 2 * w.abs().mean().item() / math.sqrt(7)}
    for how, value in expected.items():
        bank = StepBank([2, 4], "weight", options=QuantOptions(weight_init=how))
        bank.initialize(w, 4)
        assert bank.values()[4] == pytest.approx(value, rel=1e-6)
        assert bank.is_ready(4)
        assert not bank.is_ready(2)
    constant = StepBank([2, 4], "weight", options=QuantOptions(weight_init="constant"))
    constant.initialize(w, 2)
    assert constant.values()[2] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("kind", "qp", "shift"),
    [("act_unsigned", 15, 0.0), ("act_signed", 7, 0.0), ("act_shifted", 15, HARDSWISH_SHIFT)],
)
def test_first_training_pass_starts_an_activation(kind: RangeKind, qp: int, shift: float) -> None:
    x = torch.randn(3000, generator=torch.Generator().manual_seed(1)).clamp(min=-0.375)
    bank = StepBank([4, 8], kind)
    bank.set_bits(4)
    bank(x)
    start = bank.values()[4]
    assert start == pytest.approx(2 * (x + shift).abs().mean().item() / math.sqrt(qp), rel=1e-5)
    bank(x * 10)
    assert bank.values()[4] == start
    assert not bank.is_ready(8)


def test_evaluating_before_a_start_is_an_error() -> None:
    bank = StepBank([4], "act_unsigned", name="layer1.0.conv1 input").eval()
    bank.set_bits(4)
    with pytest.raises(ModelError, match=r"layer1\.0\.conv1 input.*never initialised"):
        bank(torch.rand(5))


def test_a_tensor_of_zeros_gets_the_constant_start_and_nan_is_refused() -> None:
    bank = StepBank([4], "act_unsigned")
    bank.initialize(torch.zeros(10), 4)
    assert bank.values()[4] == pytest.approx(0.1 / 4)
    with pytest.raises(ModelError, match="NaN"):
        bank.initialize(torch.tensor([1.0, float("nan")]), 4)


@pytest.mark.parametrize("stored", [2.5, -0.1])
def test_the_forward_clamp_leaves_the_stored_value_alone(stored: float) -> None:
    bank = StepBank([4], "act_signed", options=NO_SCALE)
    bank.set_step(4, stored)
    bank.set_bits(4)
    x = torch.linspace(-3, 3, 50)
    used = 1.0 if stored > 1 else 1e-5
    o = bank(x)
    torch.testing.assert_close(o, torch.clamp(torch.round(x / used), -8, 7) * used)
    o.sum().backward()
    assert bank.steps.grad.item() == 0
    assert bank.values()[4] == pytest.approx(stored)


def test_without_the_clamp_the_stored_value_is_used_and_learned() -> None:
    bank = StepBank([4], "act_signed", options=QuantOptions(step_range=None))
    bank.set_step(4, 2.5)
    bank.set_bits(4)
    o = bank(torch.linspace(-30, 30, 50))
    assert o.max().item() == pytest.approx(7 * 2.5)
    o.sum().backward()
    assert bank.steps.grad.item() != 0


def test_only_the_entry_in_use_gets_a_gradient() -> None:
    bank = StepBank([2, 3, 5], "act_unsigned")
    bank.set_bits(3)
    bank(torch.rand(100)).sum().backward()
    assert [value != 0 for value in bank.steps.grad.tolist()] == [False, True, False]


def gradient(kind: RangeKind, options: QuantOptions, parts: int) -> float:
    bank = StepBank([4], kind, options=options)
    bank.batch_parts = parts
    bank.set_step(4, 0.1)
    bank.set_bits(4)
    x = torch.rand(8, 50, generator=torch.Generator().manual_seed(2))
    bank(x).sum().backward()
    return bank.steps.grad.item()


def test_gradient_scale_counts_the_global_batch_for_activations_only() -> None:
    plain = gradient("act_unsigned", NO_SCALE, 1)
    for parts in (1, 4):
        expected = plain / math.sqrt(400 * parts * 15)
        assert gradient("act_unsigned", QuantOptions(), parts) == pytest.approx(expected, rel=1e-5)
    weight = gradient("weight", NO_SCALE, 1) / math.sqrt(400 * 7)
    assert gradient("weight", QuantOptions(), 4) == pytest.approx(weight, rel=1e-5)


def test_a_split_batch_learns_what_the_whole_batch_learns() -> None:
    x = torch.rand(8, 50, generator=torch.Generator().manual_seed(3)).double()
    grads = []
    for parts in (1, 2):
        bank = StepBank([4], "act_unsigned").double()
        bank.batch_parts = parts
        bank.set_step(4, 0.05)
        bank.set_bits(4)
        for part in x.chunk(parts):
            # The mean loss of each rank, then the mean over ranks, as DDP does.
            ((bank(part) ** 2).sum(dim=1).mean() / parts).backward()
        grads.append(bank.steps.grad.item())
    assert grads[0] == pytest.approx(grads[1], rel=1e-12)


def test_shifted_range_reaches_both_ends_and_keeps_the_minimum_exact() -> None:
    bank = StepBank([2], "act_shifted")
    bank.set_step(2, 0.5)
    bank.set_bits(2)
    x = torch.tensor([-0.375, -0.2, 0.0, 0.125, 5.0])
    assert bank(x).tolist() == [-0.375, -0.375, 0.125, 0.125, 1.125]


def test_branches_are_the_quantizers_of_every_candidate() -> None:
    bank = StepBank([4, 2], "act_unsigned")
    x = torch.rand(60)
    branches = bank.branches(x)
    assert bank.candidates == (2, 4)
    for bits, branch in zip((2, 4), branches, strict=True):
        assert torch.equal(branch, bank.quantize(x, bits))
        assert len(branch.unique()) <= 2**bits


def test_a_mix_replaces_the_current_width() -> None:
    bank = StepBank([2, 4], "act_unsigned")
    bank.mix = lambda own, x: sum(own.branches(x)) / 2
    x = torch.rand(60)
    expected = (bank.quantize(x, 2) + bank.quantize(x, 4)) / 2
    assert torch.equal(bank(x), expected)
    assert bank.active == (2, 4)


@pytest.mark.parametrize("bits", [None, 0, 32])
def test_full_precision_is_the_tensor_itself(bits: int | None) -> None:
    bank = StepBank([4], "weight")
    bank.set_bits(bits)
    x = torch.randn(3)
    assert bank(x) is x
    assert bank.active == ()


def test_bits_that_are_no_candidate_are_refused() -> None:
    with pytest.raises(ModelError, match=r"fc weight: 5 bits.*\[2, 4\]"):
        StepBank([2, 4], "weight", name="fc weight").set_bits(5)


def test_an_empty_bank_has_nothing_to_train() -> None:
    bank = StepBank([0], "weight")
    assert bank.candidates == ()
    assert not bank.steps.requires_grad


def test_state_carries_steps_and_readiness() -> None:
    bank = StepBank([2, 4], "act_unsigned")
    bank.initialize(torch.rand(100), 4)
    other = StepBank([2, 4], "act_unsigned")
    other.load_state_dict(bank.state_dict())
    assert other.values() == bank.values()
    assert other.is_ready(4)
    assert not other.is_ready(2)
    other.forget()
    assert not other.is_ready(4)


def test_a_hook_on_the_bank_gets_an_untouched_gradient() -> None:
    bank = StepBank([2], "act_unsigned")
    bank.read_once = True
    bank.set_step(2, 0.1)
    bank.set_bits(2)
    seen = []
    bank.register_forward_hook(lambda module, args, out: seen.append(out))
    x = torch.tensor([0.05, 9.0], requires_grad=True)
    loss = (bank(x) * torch.tensor([2.0, 3.0])).sum()
    grad_o, grad_x = torch.autograd.grad(loss, [seen[0], x])
    assert grad_o.tolist() == [2.0, 3.0]
    assert grad_x.tolist() == [2.0, 0.0]


def _start_on_one_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    bank = StepBank([4], "act_unsigned")
    bank.set_bits(4)
    bank(torch.full((10,), 1.0 + rank))
    torch.save(bank.steps.detach(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_ranks_start_from_their_common_mean(tmp_path: Path) -> None:
    mp.start_processes(_start_on_one_rank, args=(str(tmp_path),), nprocs=2, start_method="fork")
    starts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True).item() for rank in (0, 1)]
    assert starts[0] == starts[1]
    assert starts[0] == pytest.approx(2 * 1.5 / math.sqrt(15))
