"""Bit-meta and bit-search steps on a small network: equations 1 and 3, and what may not move."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from solvers.tables import BitChoices, CostTable
from trainers.checkpoint import state_hash
from trainers.costs import trace_costs
from trainers.distillation import DistillationConfig, TeacherLoss
from trainers.metamix.architecture import Architecture, units_of
from trainers.metamix.bit_selection import alpha_rate
from trainers.metamix.config import SearchConfig
from trainers.metamix.meta_step import MetaStep, meta_passes
from trainers.metamix.search_step import SearchStep, make_optimizer
from trainers.metamix.target import make_target
from trainers.meters import Meter
from trainers.optim import set_learning_rate
from trainers.quant.options import QuantOptions
from trainers.quant.wrap import quantize_network

PAPER = BitChoices(weight_bits=(4,), act_bits=(2, 4, 8))


class Chain(nn.Module):
    """Five convolutions in a row, each with a BatchNorm, and a classifier."""

    def __init__(self):
        super().__init__()
        layers = []
        for i in range(5):
            layers += [nn.Conv2d(2 if i == 0 else 6, 6, 3, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(6), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.body(x).mean(dim=(2, 3)))


def make_network(choices=PAPER, **options):
    torch.manual_seed(0)
    model = Chain()
    costs = trace_costs(model, name="chain", input_shape=(2, 6, 6))
    x, _ = make_batch()
    network = quantize_network(
        model, choices=choices, sample=x, options=QuantOptions(step_range=None), **options
    )
    network.model.train()
    return network, costs


def make_batch(seed=0, size=16):
    """Noise whose offset (channel 0) and contrast (channel 1) make the four classes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 2, 6, 6, generator=generator)
    y = torch.randint(0, 4, (size,), generator=generator)
    x[:, 0] += torch.where(y % 2 == 0, -0.7, 0.7)[:, None, None]
    x[:, 1] *= torch.where(y < 2, 0.5, 1.5)[:, None, None]
    return x, y


def plain_loss():
    return TeacherLoss(None, None, 0.0)


def make_search(network, costs: CostTable, config=None, choices=PAPER, target="mean_act_bits=4"):
    architecture = Architecture(units_of(costs, choices), 0.01)
    step = SearchStep(
        network, architecture, make_target(target, costs, choices), config or SearchConfig(),
        plain_loss(), Meter(),
    )  # fmt: skip
    return architecture, step


def trained_state(network):
    """Start every step size, as one bit-meta pass does."""
    MetaStep(network, plain_loss(), Meter()).accumulate(make_batch(), 0)
    network.model.zero_grad(set_to_none=True)


def test_passes_are_uniform_widest_first_with_full_precision_weights():
    network, _ = make_network()
    passes = meta_passes(network)
    assert [p["body.3"] for p in passes] == [(None, 8), (None, 4), (None, 2)]
    assert {p["body.0"] for p in passes} == {(None, 8)}
    assert {p["head"] for p in passes} == {(None, 8)}


def test_searched_weights_are_quantized_in_the_passes():
    network, _ = make_network(BitChoices(weight_bits=(3, 4), act_bits=(2, 4, 8)))
    assert [p["body.3"] for p in meta_passes(network)] == [(4, 8), (3, 4), (3, 2)]
    assert {p["head"] for p in meta_passes(network)} == {(8, 8)}


def test_meta_gradient_is_the_mean_over_bit_widths():
    network, _ = make_network()
    trained_state(network)
    network.model.double()
    x, y = make_batch()
    batch = (x.double(), y)
    meter = Meter()
    loss = MetaStep(network, plain_loss(), meter).accumulate(batch, 1)
    got = {n: p.grad.clone() for n, p in network.model.named_parameters() if p.grad is not None}
    losses, total = [], {}
    for bits in meta_passes(network):
        network.model.zero_grad(set_to_none=True)
        network.restore_bits(bits)
        one = nn.functional.cross_entropy(network.model(batch[0]), batch[1])
        one.backward()
        losses.append(one.item())
        for name, p in network.model.named_parameters():
            if p.grad is not None:
                total[name] = total.get(name, 0) + p.grad
    assert loss.item() == pytest.approx(sum(losses) / 3, rel=1e-12)
    assert got.keys() == total.keys()
    for name in got:
        torch.testing.assert_close(got[name], total[name] / 3, rtol=1e-9, atol=1e-12)
    # Every width of every searched layer learns; weight step sizes take no part.
    assert all((got[f"body.{i}.act_quantizer.steps"] != 0).all() for i in (3, 6, 9, 12))
    assert not any("weight_quantizer" in name for name in got)
    assert (meter.forward_passes, meter.backward_passes, meter.images) == (3, 3, 48)


@pytest.mark.parametrize("mode", ["batch", "running"])
@pytest.mark.parametrize("norms", ["shared", "switchable"])
def test_a_search_step_leaves_the_meta_state_bit_for_bit(mode, norms):
    network, costs = make_network(batchnorm=norms)
    trained_state(network)
    architecture, step = make_search(network, costs, SearchConfig(batchnorm=mode))
    optimizer = make_optimizer(architecture, step.config)
    before = state_hash(network.model.state_dict())
    alphas = state_hash(architecture.state_dict())
    bits = network.bits()
    needed = {n: p.requires_grad for n, p in network.model.named_parameters()}
    modes = {n: m.training for n, m in network.model.named_modules()}
    for update in range(3):
        optimizer.zero_grad()
        step.accumulate(make_batch(update), update)
        optimizer.step()
    assert state_hash(network.model.state_dict()) == before
    assert state_hash(architecture.state_dict()) != alphas
    assert all(p.grad is None for p in network.model.parameters())
    assert network.bits() == bits
    assert {n: p.requires_grad for n, p in network.model.named_parameters()} == needed
    assert {n: m.training for n, m in network.model.named_modules()} == modes
    assert all(bank.mix is None for _, _, bank in network.banks())


def test_a_failed_search_step_is_undone_too():
    network, costs = make_network()
    trained_state(network)
    _, step = make_search(network, costs)
    with pytest.raises(RuntimeError):
        step.accumulate((torch.zeros(2, 3, 6, 6), torch.zeros(2).long()), 0)
    assert all(bank.mix is None for _, _, bank in network.banks())
    assert all(p.requires_grad for p in network.weight_parameters())


def test_search_gradient_is_the_mixture_of_plain_branches():
    network, costs = make_network()
    trained_state(network)
    network.model.double()
    architecture, step = make_search(network, costs, SearchConfig(lambda_r=0.0))
    architecture.double()
    x, y = make_batch()
    step.accumulate((x.double(), y), 0)
    ours = [alpha.grad.clone() for alpha in architecture.alphas]
    architecture.zero_grad()
    loose, step = make_search(network, costs, SearchConfig(lambda_r=0.0, fixed_meta_state=False))
    loose.double()
    step.accumulate((x.double(), y), 0)
    for fused, plain in zip(ours, loose.alphas, strict=True):
        torch.testing.assert_close(fused, plain.grad, rtol=1e-8, atol=1e-12)


def test_without_a_fixed_meta_state_one_pass_serves_both_updates():
    network, costs = make_network()
    trained_state(network)
    architecture, step = make_search(network, costs, SearchConfig(fixed_meta_state=False))
    batch = make_batch()
    loss = step.accumulate_for_weights(batch, 0)
    assert network.model.body[3].weight.grad is not None
    assert network.model.body[3].act_quantizer.steps.grad is not None
    wanted = [alpha.grad.clone() for alpha in architecture.alphas]
    architecture.zero_grad(set_to_none=True)  # what the loop does between two moves
    assert step.hand_over(batch, 0) is loss
    for alpha, gradient in zip(architecture.alphas, wanted, strict=True):
        assert torch.equal(alpha.grad, gradient)
        assert gradient.abs().max() > 0


def plant_sensitive_layer(network, name):
    """Spoil the 2- and 4-bit branches of one layer: only its largest inputs survive, as spikes.

    (A branch that rounds everything to zero would not do: it only scales the mixture, which the
    next BatchNorm undoes.)
    """
    bank = network.layers[name].act_quantizer
    for bits in (2, 4):
        bank.set_step(bits, 60 * bank.values()[8])


def learn_task(network, updates=100):
    """Teach the network its task at all widths; returns the last loss."""
    step = MetaStep(network, plain_loss(), Meter())
    optimizer = torch.optim.SGD(network.model.parameters(), lr=0.1, momentum=0.9)
    for update in range(updates):
        optimizer.zero_grad()
        loss = step.accumulate(make_batch(update, 32), update)
        optimizer.step()
    network.model.zero_grad(set_to_none=True)
    return loss.item()


@pytest.fixture(scope="module")
def learned_once():
    network, costs = make_network()
    learn_task(network)
    return network, costs


@pytest.fixture
def learned(learned_once):
    """A network that knows its task, for the test alone."""
    network, costs = learned_once
    return copy.deepcopy(network), costs


def search(architecture, step, updates):
    optimizer = make_optimizer(architecture, step.config)
    for update in range(updates):
        optimizer.zero_grad()
        step.accumulate(make_batch(1000 + update, 32), update)
        set_learning_rate(optimizer, alpha_rate(step.config, update, updates))
        optimizer.step()


@pytest.mark.parametrize("name", ["body.6", "body.12"])
def test_a_planted_sensitive_layer_gets_the_highest_bits(name, learned):
    network, costs = learned
    plant_sensitive_layer(network, name)
    # A network this small has a small loss: at lambda_r = 1 the penalty would drown it.
    config = SearchConfig(lambda_r=0.3, lr=0.04)
    architecture, step = make_search(network, costs, config, target="mean_act_bits=3.5")
    search(architecture, step, 75)
    chosen = {layer: pair.act_bits for layer, pair in architecture.selected().items()}
    assert chosen.pop(name) == 8
    assert max(chosen.values()) < 8


def test_without_a_penalty_the_task_alone_moves_alpha(learned):
    network, costs = learned
    plant_sensitive_layer(network, "body.6")
    architecture, step = make_search(network, costs, SearchConfig(lambda_r=0.0))
    search(architecture, step, 40)
    moved = [float((alpha.detach() - 0.01).abs().max()) for alpha in architecture.alphas]
    assert min(moved) > 1e-3
    planted = architecture.alpha_of("body.6", "act").detach()
    assert planted.argmax() == 2
    assert planted[2] - planted[1] > 0.5


def test_the_penalty_draws_the_selection_to_the_target(learned):
    network, costs = learned
    for target in ("mean_act_bits=2.5", "mean_act_bits=4.5"):
        architecture, step = make_search(network, costs, SearchConfig(lr=0.04), target=target)
        search(architecture, step, 75)
        used = step.target.cost_of(architecture.selected())
        # Within one step of one layer, from 4 to 8 bits.
        assert abs(used - step.target.bound) <= 4


def test_weights_can_be_searched_too():
    choices = BitChoices(weight_bits=(2, 4, 8), act_bits=(2, 4, 8))
    network, costs = make_network(choices)
    trained_state(network)
    architecture, step = make_search(network, costs, choices=choices, target="bitops_level=4x4")
    before = state_hash(network.model.state_dict())
    search(architecture, step, 5)
    assert state_hash(network.model.state_dict()) == before
    for layer in costs.searched:
        for tensor in ("weight", "act"):
            assert (architecture.alpha_of(layer.name, tensor) != 0.01).all()


def test_mixed_norms_follow_the_alphas():
    """With all weight on one width the search pass is that width's own pass."""
    network, costs = make_network(batchnorm="switchable")
    trained_state(network)
    for norm, bank in network.switchable():
        for twin, shift in zip(norm.trained_copies(), (0.3, 0.6, 0.9), strict=True):
            assert len(bank.candidates) == 3
            nn.init.constant_(twin.bias, shift)
    for mode in ("batch", "running"):
        architecture, step = make_search(network, costs, SearchConfig(batchnorm=mode, lambda_r=0))
        with torch.no_grad():
            for alpha in architecture.alphas:
                alpha.copy_(torch.tensor([-100.0, 100.0, -100.0]))
        x, y = make_batch(5)
        mixed = step.accumulate((x, y), 0)
        network.restore_bits(meta_passes(network)[1])
        network.model.train(mode == "batch")
        with torch.no_grad():
            single = nn.functional.cross_entropy(network.model(x), y)
        network.model.train()
        torch.testing.assert_close(mixed, single, rtol=1e-5, atol=1e-6)


def test_a_teacher_adds_its_soft_cross_entropy():
    teacher = nn.Linear(3, 4)
    config = DistillationConfig(weight=0.5, temperature=2.0)
    loss = TeacherLoss(teacher, config, 0.0)
    x, y = torch.randn(6, 3), torch.tensor([0, 1, 2, 3, 0, 1])
    logits = torch.randn(6, 4)
    soft = loss.targets(x)
    by_hand = (
        nn.functional.cross_entropy(logits, y)
        + 0.5 * -(torch.softmax(teacher(x) / 2, 1) * torch.log_softmax(logits / 2, 1)).sum(1).mean()
    )
    torch.testing.assert_close(loss(logits, y, soft), by_hand)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert TeacherLoss(None, None, 0.0).targets(x) is None


def test_a_teacher_s_pass_is_counted_once_a_batch():
    network, costs = make_network()
    loss = TeacherLoss(Chain(), DistillationConfig(), 0.0)
    meter = Meter()
    MetaStep(network, loss, meter).accumulate(make_batch(), 0)
    assert (meter.forward_passes, meter.backward_passes, meter.images) == (4, 3, 4 * 16)
    _, step = make_search(network, costs)
    step.loss = loss
    step.accumulate(make_batch(), 0)
    assert (step.meter.forward_passes, step.meter.images) == (2, 2 * 16)
