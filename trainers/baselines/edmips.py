"""Which bits does a network choose when bits and weights learn together (EdMIPS)?

Cai and Vasconcelos, "Rethinking differentiable search for mixed-precision neural networks" (CVPR
2020, arXiv 2004.05795), and its released code (``search.py``, ``models/quant_module.py``). Phase
``baselines.edmips``. Every searched tensor is the softmax-weighted mixture of its quantized
versions, of one shared weight (the code's ``SharedMixQuantConv2d``); weights and logits take one
step together on

    L = cross entropy + cd * sum_l MACs_l * E[weight bits_l] * E[act bits_l] / MACs_1

with expectations under the softmax (``complexity_loss`` there); at the end the argmax. Both rates
fall to a tenth every ``decay_every`` epochs.

The penalty has no target: the published way to a budget is to try values of cd. So the argmax is
recorded as it is with its share of the limit, and what goes on to training is, like MetaMix's,
repaired to the most probable policy within the limit (``metamix/repair.py``) unless ``repair`` is
``none``; then the result says by how much the limit is missed.

Deviations: search and weight training start from the full-precision weights (the released code
starts both from random ones); the network as it is, where the code puts a BatchNorm before every
quantizer and leaves the ReLU out; the experiment's candidates (there 1 to 4 bits for weights, 2 to
4 for activations); LSQ's quantizers with learned steps, one a width, instead of fixed steps for
Gaussian weights and HWGQ's for activations; groups share their logits; of equal logits the widest
wins (there the narrowest); vectors have no weight decay; first and last layer at the experiment's
pins (8 bits) instead of full precision; a limit on size or mean bits puts that expected cost in the
penalty's place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from solvers.accounting import accounting_named
from solvers.errors import LimitError
from solvers.policy import make_policy
from solvers.storage import load_costs, save_policy
from solvers.tables import BitChoices, CostTable, LayerBits
from trainers.baselines.config import EdmipsConfig
from trainers.data import Batch
from trainers.errors import ModelError
from trainers.loop import Move, Training
from trainers.metamix.architecture import Architecture, units_of
from trainers.metamix.bit_selection import with_pins
from trainers.metamix.mix import Mixture
from trainers.metamix.repair import Repaired, repair
from trainers.metamix.target import Target, make_target
from trainers.meters import Meter, device_name
from trainers.optim import make_sgd, num_updates
from trainers.phases import PhaseContext, PhaseResult, PhaseSpec
from trainers.precision import backward
from trainers.quant.guard import bound_step_changes
from trainers.quant.handle import QuantNetwork
from trainers.results import finish_phase, load_result
from trainers.setup import make_data, make_network, make_plan, quantize, start_steps
from trainers.source_config import PolicySearch

POLICY, ARGMAX = "policy.json", "argmax-policy.json"


def run(spec: PhaseSpec, context: PhaseContext) -> PhaseResult:
    """Train weights and logits, choose the bits.

    ``config`` is a ``PolicySearch`` of an ``EdmipsConfig``. Inputs: ``weights``, ``costs``.
    Outputs: ``policy`` and ``argmax`` (before repair). Metrics: ``reached_share``,
    ``argmax_share``, ``changed_layers``, ``expected_share`` (expected cost over the limit).

    Raises:
        DivergedError: a loss or gradient stopped being finite.
        LimitError: more than one limit, or one that is out of reach or no sum over layers.
        InterruptedPhaseError: the driver asked to stop; a checkpoint is written.
    """
    done = load_result(context.step_dir / "result.json")
    if done is not None:
        return done
    search: PolicySearch = spec.config
    config: EdmipsConfig = search.source
    if spec.choices is None:
        raise ModelError(f"{spec.phase} needs candidate bit-widths")
    costs = load_costs(Path(spec.inputs["costs"]))
    target = target_of(search, costs, spec.choices)
    data = make_data(spec, context)
    model = make_network(spec, context)
    network = quantize(model, data, spec.choices, config, spec, context, pins=spec.pins)
    plan = make_plan(data.train, data, config, spec, context)
    meter = Meter(context.device)
    if not any((context.step_dir / "checkpoints").glob("step-*")):
        # The mixture reads every width in its first pass: all must have started before it.
        start_steps(network, plan, config, context, meter)
    architecture = Architecture(units_of(costs, spec.choices), config.alpha_init)
    architecture.to(context.device)
    unit = unit_of_cost(costs, target)

    def accumulate(batch: Batch, update: int) -> Tensor:
        images, labels = batch
        with mixed(network, architecture):
            loss = F.cross_entropy(model(images), labels, label_smoothing=config.label_smoothing)
            meter.forward(len(labels))
            penalty = config.complexity_decay * expected_cost(target, architecture) / unit
            backward(model, loss + penalty.to(loss.dtype))
            meter.backward()
        return loss.detach()

    optimizer = make_optimizer(network, architecture, config)
    bound_step_changes(optimizer, network.step_parameters(), config.max_step_change)
    total = num_updates(config, plan.num_batches)
    move = Move(
        name="search",
        optimizer=optimizer,
        accumulate=accumulate,
        learning_rate=lambda u: config.lr * 0.1 ** (u // (config.decay_every * plan.num_batches)),
        clip_grad_value=config.clip_grad_value,
    )
    metrics = Training(
        model=model,
        plan=plan,
        total_updates=total,
        moves=lambda update: (move,),
        context=context,
        stream=spec.phase,
        seed=spec.seed,
        meter=meter,
        folder=context.step_dir / "checkpoints",
        extra={"architecture": architecture},
    ).run()
    argmax = architecture.selected()
    found = chosen(architecture, target, config)
    accounting = accounting_named(search.accounting)
    policy = make_policy(costs, with_pins(costs, found.bits), "edmips", accounting)
    before = make_policy(costs, with_pins(costs, argmax), "edmips-argmax", accounting)
    expected = float(expected_cost(target, architecture).detach())
    result = PhaseResult(
        phase=spec.phase,
        outputs={"policy": POLICY, "argmax": ARGMAX},
        metrics={
            **metrics,
            "target": target.shown(target.bound),
            "reached": target.shown(found.cost),
            "reached_share": found.cost / target.bound,
            "argmax_share": target.cost_of(argmax) / target.bound,
            "expected_share": (target.constant + expected) / target.bound,
            "changed_layers": float(len(found.changed)),
        },
        cost=meter.total(),
        device=device_name(context.device),
        facts={
            "data_fingerprint": data.fingerprint,
            "num_updates": total,
            "limits": list(search.limits),
            "accounting": accounting.name,
            "in_band": found.in_band,
            "changed_layers": list(found.changed),
            "policy_id": policy.policy_id,
            "argmax_policy_id": before.policy_id,
            "input_ranges": dict(network.kinds),
        },
    )
    if context.rank == 0:
        save_policy(context.step_dir / POLICY, policy)
        save_policy(context.step_dir / ARGMAX, before)
        finish_phase(context.step_dir, result)
    return result


def target_of(search: PolicySearch, costs: CostTable, choices: BitChoices) -> Target:
    """The one limit as costs of options.

    Raises:
        LimitError: more than one limit, or one that no selection reaches.
    """
    if len(search.limits) != 1:
        raise LimitError(
            f"edmips aims at one limit, not at {len(search.limits)} together "
            f"({', '.join(search.limits)}); give it a limit set of one"
        )
    target = make_target(search.limits[0], costs, choices, accounting_named(search.accounting))
    if target.bound < target.smallest:
        target.check_reachable()
    # Above what the widest candidates use, a limit binds nothing: they are the aim.
    return target if target.bound <= target.largest else replace(target, bound=target.largest)


def unit_of_cost(costs: CostTable, target: Target) -> int:
    """What the penalty is counted in: the first searched layer at one bit."""
    first = costs.searched[0]
    match target.ceiling.resource:
        case "bitops":
            return first.num_macs
        case "size_bits":
            return first.num_weights
        case _:
            return 1


def expected_cost(target: Target, architecture: Architecture) -> Tensor:
    """Sum over searched layers of E[cost] under the softmax of the logits, 0-dim float64."""
    device = architecture.alphas[0].device
    total = torch.zeros((), dtype=torch.float64, device=device)
    for name, options in target.options.items():
        table = torch.tensor(options, dtype=torch.float64, device=device)
        for tensor in ("act", "weight"):
            alpha = architecture.alpha_of(name, "act" if tensor == "act" else "weight")
            table = table[..., 0] if alpha is None else table @ torch.softmax(alpha.double(), 0)
        total = total + table
    return total


def make_optimizer(
    network: QuantNetwork, architecture: Architecture, config: EdmipsConfig
) -> torch.optim.SGD:
    """One SGD for both, the logits with a rate and a decay of their own."""
    optimizer = make_sgd(network.model.parameters(), config)
    optimizer.add_param_group(
        {
            "params": list(architecture.parameters()),
            "weight_decay": config.alpha_weight_decay,
            "lr_factor": config.alpha_lr / config.lr,
        }
    )
    return optimizer


def chosen(architecture: Architecture, target: Target, config: EdmipsConfig) -> Repaired:
    """The policy that goes on: the argmax, repaired if it misses and repair is on."""
    if config.repair == "probable":
        return repair(architecture, target, config.band)
    bits: Mapping[str, LayerBits] = architecture.selected()
    cost = target.cost_of(bits)
    in_band = config.band * target.bound <= cost <= target.bound
    return Repaired(bits=bits, cost=cost, in_band=in_band, changed=())


@contextmanager
def mixed(network: QuantNetwork, architecture: Architecture) -> Iterator[None]:
    """Every searched tensor at its mixture, the others at their widest candidate or pin."""
    before = network.bits()
    banks = []
    network.restore_bits(
        {
            name: (
                max(layer.weight_quantizer.candidates, default=None),
                max(layer.act_quantizer.candidates, default=None),
            )
            for name, layer in network.layers.items()
        }
    )
    for name, tensor, bank in network.banks():
        alpha = architecture.alpha_of(name, "weight" if tensor == "weight" else "act")
        if alpha is not None:
            bank.mix = Mixture(alpha, fixed=False)
            banks.append(bank)
    try:
        yield
    finally:
        for bank in banks:
            bank.mix = None
        network.restore_bits(before)
