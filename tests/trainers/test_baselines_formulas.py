"""What baselines measure, against the written formulas in float64 or by brute force."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from solvers.tables import BitChoices
from trainers.baselines.calibration import Calibration
from trainers.baselines.config import CalibrationConfig, HawqConfig
from trainers.baselines.curvature import _block_products, top_eigenvalues, trace_probe
from trainers.baselines.errors import energies, squared_errors
from trainers.baselines.fisher import fisher_errors
from trainers.baselines.hawq_v2 import average_traces, largest_relative_error
from trainers.baselines.input_leaves import input_leaves
from trainers.baselines.progress import Progress
from trainers.baselines.step_rule import choose_steps, least_error_step, set_steps, step_banks
from trainers.baselines.table import FLOOR, importance_rows
from trainers.costs import trace_costs
from trainers.data import ImageData
from trainers.data.augment import AugmentSpec
from trainers.data.images import InMemoryImages, Normalisation
from trainers.errors import DivergedError, InterruptedPhaseError
from trainers.meters import Meter
from trainers.phases import PhaseContext
from trainers.quant.bank import range_of
from trainers.quant.wrap import quantize_network

NUM_IMAGES = 10


class Tiny(nn.Module):
    """Four layers, the inner two searched; smooth, so that second derivatives are exact."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.inner = nn.Conv2d(3, 4, 2)
        self.fold = nn.Linear(16, 6)
        self.last = nn.Linear(6, 4)

    def forward(self, x):
        x = F.softplus(self.norm(self.first(x)))
        x = F.softplus(self.inner(x)).flatten(1)
        return self.last(torch.tanh(self.fold(x)))


@pytest.fixture
def tiny(tmp_path):
    torch.manual_seed(0)
    model = Tiny().eval()
    model.norm.running_mean.normal_(std=0.1)
    costs = trace_costs(model, name="tiny", input_shape=(1, 5, 5))
    model.double()
    pixels = torch.randint(256, (NUM_IMAGES, 1, 5, 5), dtype=torch.uint8)
    set_of = InMemoryImages(pixels, torch.zeros(NUM_IMAGES), Normalisation(mean=(0.5,), std=(0.2,)))
    images = set_of.batch(torch.arange(NUM_IMAGES), None)[0].double()
    # Labels the network agrees with: far from them the Hessian is mostly noise around zero.
    set_of.labels = model(images).argmax(dim=1)
    set_of.batch = lambda i, _: (images[i], set_of.labels[i])  # float64 images
    choices = BitChoices(weight_bits=(2, 3, 8), act_bits=(2, 4))
    network = quantize_network(model, choices=choices, sample=images)
    network.model.double()
    for parameter in network.step_parameters():
        parameter.requires_grad_(False)
    return Calibration(
        costs=costs,
        network=network,
        data=ImageData(
            train=set_of, test=set_of, holdout=None, num_classes=4, input_shape=(1, 5, 5),
            augment=AugmentSpec(),
        ),
        indices=torch.arange(NUM_IMAGES),
        batch_size=4,
        context=PhaseContext.alone(tmp_path),
        meter=Meter(),
    )  # fmt: skip


def images_of(calibration):
    return calibration.data.train.batch(torch.arange(NUM_IMAGES), None)


def inputs_of(calibration):
    """What the searched layers read in full precision, all images at once."""
    found = {}
    layers = {n: calibration.network.layers[n] for n in calibration.searched}
    handles = [
        layer.register_forward_pre_hook(lambda _, a, n=n: found.__setitem__(n, a[0].detach()))
        for n, layer in layers.items()
    ]
    calibration.network.model(images_of(calibration)[0])
    for handle in handles:
        handle.remove()
    return found


def rounded(bank, x, bits):
    """Equation 1 of LIMPQ in plain words."""
    qn, qp = range_of(bank.kind, bits)
    s = bank.values()[bits]
    return torch.clamp(torch.round(x / s), qn, qp) * s


@pytest.mark.parametrize(("qn", "qp"), [(0, 3), (-2, 1), (-8, 7), (0, 255)])
def test_no_step_of_a_fine_grid_makes_a_smaller_squared_error(qn, qp):
    generator = torch.Generator().manual_seed(qp)
    values = torch.randn(20_000, generator=generator, dtype=torch.float64)
    values = values.abs() if qn == 0 else values
    low, high = float(values.min()), float(values.max())
    bins = ((values - low) * (4096 / (high - low))).long().clamp(0, 4095)
    counts = torch.bincount(bins, minlength=4096).double().numpy()
    centres = low + (torch.arange(4096).numpy() + 0.5) * (high - low) / 4096

    def error(step):
        return float(((values / step).round().clamp(qn, qp) * step - values).square().sum())

    step = least_error_step(counts, centres, qn, qp)
    widest = max(high / qp, low / qn if qn else 0.0)
    finest = min(error(widest * share) for share in torch.linspace(0.01, 1.1, 2000).tolist())
    assert error(step) < 1.02 * finest
    assert error(step) < 0.9 * error(widest) or qp == 255


def test_a_tensor_of_zeros_says_nothing():
    import numpy as np

    assert least_error_step(np.ones(4), np.zeros(4), 0, 3) == 0.0


def test_steps_are_set_and_can_be_set_again(tiny):
    steps = choose_steps(tiny, CalibrationConfig())
    before = {key: bank.values() for key, bank in step_banks(tiny).items()}
    assert {key[1] for key in before} == {"weight", "act"}
    for bank in step_banks(tiny).values():
        bank.forget()
        bank.steps.data.fill_(9.0)
    set_steps(tiny, steps)
    after = {key: bank.values() for key, bank in step_banks(tiny).items()}
    assert after == {k: pytest.approx(v, rel=1e-6) for k, v in before.items()}
    assert all(bank.is_ready(b) for bank in step_banks(tiny).values() for b in bank.candidates)


def test_the_other_rule_is_where_training_starts(tiny):
    choose_steps(tiny, CalibrationConfig(step_rule="lsq"))
    x = inputs_of(tiny)["fold"]
    bank = tiny.bank("fold", "act")
    assert bank.values()[4] == pytest.approx(2 * float(x.abs().mean()) / 15**0.5, rel=1e-6)
    weight = tiny.network.layers["fold"].weight.detach()
    widest = max(
        abs(float(weight.mean() - 3 * weight.std())), float(weight.mean() + 3 * weight.std())
    )
    assert tiny.bank("fold", "weight").values()[3] == pytest.approx(widest / 4, rel=1e-6)


def test_errors_are_squared_distances(tiny):
    choose_steps(tiny, CalibrationConfig())
    tiny.meter.images = 0
    errors = squared_errors(tiny)
    assert tiny.meter.images == NUM_IMAGES
    assert list(errors) == list(tiny.keys)
    norms = energies(tiny)
    for name, x in inputs_of(tiny).items():
        weight = tiny.network.layers[name].weight.detach()
        for tensor, value, parts in (("weight", weight, 1), ("act", x, NUM_IMAGES)):
            bank = tiny.bank(name, tensor)
            assert norms[name, tensor] == pytest.approx(float(value.square().sum()) / parts)
            for bits in bank.candidates:
                distance = float((rounded(bank, value, bits) - value).square().sum()) / parts
                assert errors[name, tensor, bits] == pytest.approx(distance, rel=1e-9)


def test_fisher_errors_weigh_every_element_by_its_squared_gradient(tiny):
    choose_steps(tiny, CalibrationConfig())
    found = fisher_errors(tiny)
    images, labels = images_of(tiny)
    layers = {n: tiny.network.layers[n] for n in tiny.searched}
    inputs = inputs_of(tiny)
    worth = {n: torch.zeros_like(layer.weight) for n, layer in layers.items()}
    acts = dict.fromkeys(found, 0.0)
    for i in range(NUM_IMAGES):  # an image at a time
        with input_leaves(layers) as leaves:
            loss = F.cross_entropy(tiny.network.model(images[i : i + 1]), labels[i : i + 1])
        wanted = [layer.weight for layer in layers.values()] + [leaves[n] for n in layers]
        gradients = torch.autograd.grad(loss, wanted)
        for j, name in enumerate(layers):
            worth[name] += gradients[j].square() / NUM_IMAGES
            x, g = inputs[name][i : i + 1], gradients[len(layers) + j]
            for bits in tiny.bank(name, "act").candidates:
                error = rounded(tiny.bank(name, "act"), x, bits) - x
                acts[name, "act", bits] += float((error * g).square().sum()) / NUM_IMAGES
    for name, layer in layers.items():
        for bits in tiny.bank(name, "weight").candidates:
            weight = layer.weight.detach()
            error = rounded(tiny.bank(name, "weight"), weight, bits) - weight
            expected = float((error.square() * worth[name]).sum())
            assert found[name, "weight", bits] == pytest.approx(expected, rel=1e-7)
        for bits in tiny.bank(name, "act").candidates:
            assert found[name, "act", bits] == pytest.approx(acts[name, "act", bits], rel=1e-7)


def exact_hessian(loss_of, tensor):
    """Second derivatives by one tensor, [numel, numel]."""
    hessian = torch.autograd.functional.hessian(loss_of, tensor)
    return hessian.reshape(tensor.numel(), tensor.numel())


def weight_hessians(calibration):
    images, labels = images_of(calibration)
    model = calibration.network.model
    found = {}
    for name in calibration.searched:
        key = f"{name}.weight"

        def loss_of(w, key=key):
            logits = torch.func.functional_call(model, {key: w}, (images,))
            return F.cross_entropy(logits, labels)

        found[name] = exact_hessian(loss_of, model.get_parameter(key).detach())
    return found


def act_traces(calibration):
    """Mean over images of tr of an image's Hessian by what a layer reads."""
    images, labels = images_of(calibration)
    inputs = inputs_of(calibration)
    traces = dict.fromkeys(calibration.searched, 0.0)
    for name in traces:
        layer = calibration.network.layers[name]
        for i in range(NUM_IMAGES):

            def loss_of(x, i=i, layer=layer):
                handle = layer.register_forward_pre_hook(lambda _, __: (x,))
                loss = F.cross_entropy(
                    calibration.network.model(images[i : i + 1]), labels[i : i + 1]
                )
                handle.remove()
                return loss

            hessian = exact_hessian(loss_of, inputs[name][i : i + 1])
            traces[name] += float(hessian.trace()) / NUM_IMAGES
    return traces


def test_traces_are_within_three_standard_errors_of_the_exact_ones(tiny):
    samples = torch.stack([trace_probe(tiny, 0, i, acts=True) for i in range(200)])
    means, errors = samples.mean(dim=0), samples.std(dim=0) / 200**0.5
    by_weight, by_act = weight_hessians(tiny), act_traces(tiny)
    exact = [float(h.trace()) for h in by_weight.values()] + list(by_act.values())
    # Ten images in batches of four: three products by weights, three by activations, each probe.
    assert tiny.meter.total().hvps == 200 * 6
    for i, (mean, error) in enumerate(zip(means.tolist(), errors.tolist(), strict=True)):
        assert abs(mean - exact[i]) < 3 * error
        # Else the interval would hold anything; one activation's trace is nearly zero.
        assert error < 0.25 * max(abs(t) for t in (exact[:2] if i < 2 else exact[2:]))
    average = average_traces(tiny, means)
    sizes = {"inner": (4 * 3 * 4, 27), "fold": (16 * 6, 16)}
    for i, (name, (num_weights, num_inputs)) in enumerate(sizes.items()):
        assert average[name, "weight"] == pytest.approx(float(means[i]) / num_weights)
        assert average[name, "act"] == pytest.approx(float(means[2 + i]) / num_inputs)
    assert largest_relative_error(samples) == pytest.approx(float((errors / means.abs()).max()))


def test_power_iteration_finds_the_largest_eigenvalue_of_each_block(tiny, tmp_path):
    progress = Progress(tiny.context, tiny.meter, "hawq")
    config = HawqConfig(max_iterations=150, tol=1e-6)
    values, iterations = top_eigenvalues(tiny, config, progress, 0)
    assert 2 < iterations < 150
    for value, hessian in zip(values.tolist(), weight_hessians(tiny).values(), strict=True):
        spectrum = torch.linalg.eigvalsh(hessian)
        assert value == pytest.approx(float(spectrum[spectrum.abs().argmax()]), rel=1e-3)


def test_a_block_product_has_nothing_of_other_layers(tiny):
    weights = [tiny.network.layers[n].weight for n in tiny.searched]
    vectors = [torch.randn_like(w) for w in weights]
    for product, hessian, vector in zip(
        _block_products(tiny, weights, vectors, [True, True]),
        weight_hessians(tiny).values(), vectors, strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(product.flatten(), hessian @ vector.flatten())
    settled, _ = _block_products(tiny, weights, vectors, [False, True])
    assert not settled.any()


def test_values_that_are_not_positive_are_raised_to_the_floor_and_counted():
    values = {("a", "weight", 2): 4.0, ("a", "weight", 4): -1.0, ("a", "act", 2): 0.0}
    rows, num_floored = importance_rows("m", values)
    assert [row.value for row in rows] == [4.0, 4.0 * FLOOR, 4.0 * FLOOR]
    assert num_floored == 2
    with pytest.raises(DivergedError, match="no layer's value is positive"):
        importance_rows("m", {("a", "weight", 2): 0.0})


def test_a_result_is_measured_once_and_its_cost_counted_once(tmp_path):
    stop = [False, True, True, False]
    context = PhaseContext(step_dir=tmp_path, should_stop=lambda: stop.pop(0))
    measured = []

    def measure(name):
        def work():
            measured.append(name)
            meter.forward(7)
            return torch.tensor(float(len(measured)))

        return work

    def attempt():
        nonlocal meter
        meter = Meter()
        progress = Progress(context, meter, "test")
        found = [float(progress.once(name, measure(name))) for name in "abcd"]
        return found, meter.total().images

    meter = Meter()
    for last in "bc":
        with pytest.raises(InterruptedPhaseError, match=f"stopped after {last}"):
            attempt()
    assert attempt() == ([1.0, 2.0, 3.0, 4.0], 28)
    assert measured == ["a", "b", "c", "d"]


def test_a_result_that_is_not_finite_is_refused_and_not_kept(tmp_path):
    progress = Progress(PhaseContext.alone(tmp_path), Meter(), "test")
    with pytest.raises(DivergedError, match="the result of x"):
        progress.once("x", lambda: torch.tensor(float("nan")))
    assert not progress.has("x")
