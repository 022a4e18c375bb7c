"""Two processes against one: the same gradients, steps, weights, measurements and stops."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn
from torch.nn import functional as F

from tests.trainers.joint_ranks import DIGITS, MODEL, UPDATES, Joint
from trainers import distributed
from trainers.checkpoint import load_tensors, state_hash
from trainers.data import BatchPlan
from trainers.distributed import (
    average_norm_statistics,
    check_same,
    reduce_gradients,
    share_from_rank_zero,
    sum_over_ranks,
)
from trainers.errors import CheckpointError, DivergedError, InterruptedPhaseError
from trainers.evaluate import evaluate, reestimate_batchnorm
from trainers.meters import Meter
from trainers.models import build_model
from trainers.phases import PhaseContext


def gradients_of_a_batch(start: int, stop: int) -> tuple[list[nn.Parameter], Tensor]:
    """Parameters with the gradient of the mean loss over some of 24 images, and one without any."""
    torch.manual_seed(0)
    model = build_model(MODEL).double().eval()
    images, labels = DIGITS.train.batch(torch.arange(start, stop), None)
    loss = F.cross_entropy(model(images.double()), labels)
    loss.backward()
    return [*model.parameters(), nn.Parameter(torch.zeros(3))], loss


def refusal(action) -> str:  # type: ignore[no-untyped-def]
    try:
        action()
    except (CheckpointError, DivergedError, InterruptedPhaseError) as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def both_ranks(rank: int, folder: Path) -> None:
    """Everything two ranks do together; each leaves what it found in ``rank<r>.pt``."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    alone = PhaseContext(step_dir=folder, rank=rank, world_size=2)
    found: dict[str, object] = {}

    parameters, loss = gradients_of_a_batch(12 * rank, 12 * (rank + 1))
    found["reduced"] = reduce_gradients(parameters, loss, stop=rank == 1)
    found["gradients"] = [p.grad for p in parameters]
    parameters, loss = gradients_of_a_batch(12 * rank, 12 * (rank + 1))
    bucket, distributed.BUCKET_ENTRIES = distributed.BUCKET_ENTRIES, 100
    found["reduced in many"] = reduce_gradients(parameters, loss, stop=rank == 1)
    distributed.BUCKET_ENTRIES = bucket
    found["gradients of many"] = [p.grad for p in parameters]
    half = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    half.grad = torch.full((2,), 1.0 + rank, dtype=torch.bfloat16)
    reduce_gradients([half], torch.tensor(1.0), stop=False)
    found["half"] = half.grad

    found["sums"] = sum_over_ranks([1.0 + rank, 0.5])
    found["same"] = refusal(lambda: check_same("the update", 7))
    found["different"] = refusal(lambda: check_same("the update", 7 + rank))

    torch.manual_seed(rank)
    model = build_model(MODEL)
    share_from_rank_zero(model)
    found["shared"] = state_hash(model.state_dict())
    model.bn1.running_mean.fill_(rank)
    model.bn1.running_var.fill_(3.0 + rank)
    model.layer3[0].bn2.running_var.copy_(torch.arange(16.0) * (rank + 1))
    average_norm_statistics(model)
    found["averaged"] = {k: b.clone() for k, b in model.named_buffers()}

    torch.manual_seed(0)
    model, meter = build_model(MODEL), Meter()
    found["one image"] = evaluate(
        model, DIGITS.test.subset(torch.tensor([5])), 64, alone, meter
    ) | {"seen": meter.images}
    found["evaluated"] = evaluate(model, DIGITS.test, 64, alone, meter)
    plan = BatchPlan(
        images=DIGITS.train, batch_size=64, seed=0, stream="s", rank=rank, world_size=2
    )
    meter = Meter()
    reestimate_batchnorm(model, plan.epoch(0), 128, alone, meter)
    found["re-estimated"] = {k: b.clone() for k, b in model.named_buffers()}
    found["re-estimation images"] = meter.images

    found["joint"] = Joint(folder / "frozen", rank, 2, frozen=True).run()
    found["undisturbed"] = Joint(folder / "undisturbed", rank, 2, frozen=False).run()
    # Only one rank is asked to stop, in mid-epoch, where statistics differ between ranks.
    stopped = Joint(folder / "stopped", rank, 2, frozen=False, stop_at=2 if rank == 1 else 0)
    found["stop"] = refusal(stopped.run)
    dist.barrier()
    if rank == 0:
        shutil.copytree(folder / "stopped", folder / "for one")
    found["resumed"] = Joint(folder / "stopped", rank, 2, frozen=False).run()
    poisoned = Joint(folder / "poisoned", rank, 2, frozen=False)
    poisoned.poison_at = 3 if rank == 1 else -1
    found["poisoned"] = refusal(poisoned.run)

    torch.save(found, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(both_ranks, args=(folder,), nprocs=2)
    return [torch.load(folder / f"rank{r}.pt", weights_only=True) for r in range(2)], folder


@pytest.fixture(scope="module")
def two(ranks):
    return ranks[0]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return Joint(tmp_path_factory.mktemp("one"), 0, 1, frozen=True).run()


def test_reduced_gradients_are_those_of_the_whole_batch(two):
    parameters, loss = gradients_of_a_batch(0, 24)
    for found in two:
        assert found["reduced"] == [pytest.approx(loss.item(), rel=1e-12), 1.0]
        for gradient, parameter in zip(found["gradients"], parameters, strict=True):
            if parameter.grad is None:
                assert gradient is None
            else:
                torch.testing.assert_close(gradient, parameter.grad, rtol=1e-9, atol=1e-14)
    for mine, other in zip(two[0]["gradients"], two[1]["gradients"], strict=True):
        assert mine is other is None or torch.equal(mine, other)


def test_buckets_change_no_bit(two):
    parameters, _ = gradients_of_a_batch(0, 24)
    with_gradient = [p for p in parameters if p.grad is not None]
    assert sum(p.numel() for p in with_gradient) > 300  # more than one bucket of 100
    for found in two:
        assert found["reduced in many"] == found["reduced"]
        for of_many, of_one in zip(found["gradients of many"], found["gradients"], strict=True):
            assert of_many is of_one is None or torch.equal(of_many, of_one)


def test_short_floats_are_reduced_and_stay_short(two):
    for found in two:
        assert found["half"].dtype == torch.bfloat16
        assert found["half"].tolist() == [1.5, 1.5]


def test_numbers_are_summed_and_differences_refused_on_every_rank(two):
    for found in two:
        assert found["sums"] == [3.0, 1.0]
        assert found["same"] == "none"
        assert "the update differs between ranks: [7, 8]" in found["different"]


def test_rank_zero_s_weights_are_everybody_s(two):
    torch.manual_seed(0)
    assert {found["shared"] for found in two} == {state_hash(build_model(MODEL).state_dict())}


def test_statistics_are_averaged_and_nothing_else(two):
    for found in two:
        averaged = found["averaged"]
        assert averaged["bn1.running_mean"].tolist() == [0.5] * 4
        assert averaged["bn1.running_var"].tolist() == [3.5] * 4
        assert averaged["layer3.0.bn2.running_var"].tolist() == [1.5 * i for i in range(16)]
        assert averaged["bn1.num_batches_tracked"] == 0


def test_two_ranks_measure_what_one_measures(two, tmp_path):
    torch.manual_seed(0)
    model = build_model(MODEL)
    context = PhaseContext.alone(tmp_path)
    whole = evaluate(model, DIGITS.test, 64, context, Meter())
    single = evaluate(model, DIGITS.test.subset(torch.tensor([5])), 64, context, Meter())
    for found in two:
        assert found["evaluated"] == pytest.approx(whole, rel=1e-6)
        assert {k: found["one image"][k] for k in single} == pytest.approx(single, rel=1e-6)
    assert [found["one image"]["seen"] for found in two] == [1, 0]


def test_re_estimated_statistics_are_alike_on_every_rank(two, tmp_path):
    assert [found["re-estimation images"] for found in two] == [64, 64]
    mine, other = (found["re-estimated"] for found in two)
    assert state_hash(mine) == state_hash(other)
    torch.manual_seed(0)
    model = build_model(MODEL)
    plan = BatchPlan(images=DIGITS.train, batch_size=64, seed=0, stream="s")
    reestimate_batchnorm(model, plan.epoch(0), 128, PhaseContext.alone(tmp_path), Meter())
    # Equal shares: the mean over ranks is the mean over the batch; in the first BatchNorm, whose
    # input does not depend on other statistics.
    torch.testing.assert_close(mine["bn1.running_mean"], model.bn1.running_mean)


def test_step_sizes_start_alike_on_both_ranks_and_as_on_one(two, one):
    mine, other = (found["joint"]["steps"] for found in two)
    for name, steps in one["steps"].items():
        assert torch.equal(mine[name], other[name]), name
        torch.testing.assert_close(mine[name], steps, rtol=1e-12, atol=0)
    assert len({tuple(steps.tolist()) for steps in mine.values()}) == len(mine)


def test_the_first_gradient_is_that_of_one_process_step_sizes_included(two, one):
    # An activation's gradient scale counts the global batch, or its steps would differ by sqrt(2).
    steps = [n for n in one["gradients"] if n.endswith("act_quantizer.steps")]
    assert len(steps) >= 6
    for found in two:
        for name, gradient in one["gradients"].items():
            torch.testing.assert_close(
                found["joint"]["gradients"][name], gradient, rtol=1e-7, atol=1e-12, msg=name
            )


def test_two_ranks_end_with_the_weights_of_one(two, one):
    assert state_hash(two[0]["joint"]["state"]) == state_hash(two[1]["joint"]["state"])
    for name, value in one["state"].items():
        torch.testing.assert_close(
            two[0]["joint"]["state"][name], value, rtol=0, atol=1e-10, msg=name
        )
    for found in two:
        assert found["joint"]["metrics"] == pytest.approx(one["metrics"], rel=1e-6)
        assert found["joint"]["cost"] == one["cost"]


def test_ranks_end_alike_even_inside_an_epoch(two):
    # Statistics of BatchNorm are each rank's own in between.
    assert state_hash(two[0]["undisturbed"]["state"]) == state_hash(two[1]["undisturbed"]["state"])


def test_one_rank_s_stop_stops_all_and_the_resume_is_exact(two):
    for found in two:
        assert "InterruptedPhaseError: stopped after update 2 of 5" in found["stop"]
        for part in ("state", "metrics"):
            assert state_hash(found["resumed"][part]) == state_hash(found["undisturbed"][part])
        assert found["resumed"]["cost"]["images"] == found["undisturbed"]["cost"]["images"]


def test_every_rank_keeps_its_own_statistics_in_a_checkpoint(ranks):
    folder = ranks[1] / "for one" / "checkpoints" / "step-000000002"
    mine, other = (load_tensors(folder / f"rank{r}.pt")["buffers"] for r in range(2))
    assert mine.keys() == other.keys()
    assert state_hash(mine) != state_hash(other)


def test_another_number_of_ranks_goes_on(ranks, two):
    job = Joint(ranks[1] / "for one", 0, 1, frozen=False)
    found = job.run()
    assert job.asked == UPDATES - 2
    assert found["cost"]["images"] == two[0]["undisturbed"]["cost"]["images"]
    assert all(torch.isfinite(v).all() for v in found["state"].values())


def test_a_nan_on_one_rank_is_refused_on_both(two):
    for found in two:
        assert "DivergedError: joint: loss nan" in found["poisoned"]
        assert "at update 3" in found["poisoned"]


def test_the_comparison_would_notice_a_wrong_gradient_scale(one, tmp_path):
    job = Joint(tmp_path, 0, 1, frozen=True)
    job.network.set_world_size(2)
    wrong = job.run()
    name = "layer1.0.conv2.act_quantizer.steps"
    ratio = one["gradients"][name] / wrong["gradients"][name]
    assert ratio.tolist() == pytest.approx([math.sqrt(2)] * 2, rel=1e-9)


def test_without_a_group_everything_is_the_identity():
    assert sum_over_ranks([1.5, 2.0]) == [1.5, 2.0]
    check_same("anything", 3)
    parameters, loss = gradients_of_a_batch(0, 4)
    before = [None if p.grad is None else p.grad.clone() for p in parameters]
    assert reduce_gradients(parameters, loss, stop=True) == [loss.item(), 1.0]
    for p, gradient in zip(parameters, before, strict=True):
        assert p.grad is gradient is None or torch.equal(p.grad, gradient)
