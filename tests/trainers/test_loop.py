"""The loop: resumed training is the undisturbed one bit for bit, and NaN never reaches a weight."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trainers.checkpoint import Checkpoints, load_tensors, state_hash
from trainers.data import BatchPlan, load_data
from trainers.data.augment import AugmentSpec
from trainers.errors import CheckpointError, DivergedError, InterruptedPhaseError
from trainers.loop import Move, Training
from trainers.meters import Meter
from trainers.optim import learning_rate
from trainers.phases import DataSpec, PhaseContext
from trainers.recipes import OptimizerConfig

IMAGES = load_data(DataSpec(name="digits"), 0).train.subset(torch.arange(70))
RECIPE = OptimizerConfig(lr=0.1)
TOTAL = 17  # 4 updates an epoch, so the last epoch is cut short


class Job:
    """A training of a small network with BatchNorm and dropout, and all that happened to it."""

    def __init__(self, folder, *, total=TOTAL, momentum=0.1, poison=None, stop_at=(), **settings):
        torch.manual_seed(1)
        self.model = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4, momentum=momentum),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.25),
            nn.Linear(256, 10),
        )
        self.reports, self.asked, self.stop_at, self.poison = [], 0, stop_at, poison
        self.meter = Meter()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=9.0, momentum=0.9)
        move = {"learning_rate": lambda u: learning_rate(RECIPE, u, total, 4)}
        move |= settings.pop("move", {})
        self.move = Move(name="job", optimizer=self.optimizer, accumulate=self.accumulate, **move)
        plan = BatchPlan(
            images=IMAGES, batch_size=16, seed=0, stream="job", augment=AugmentSpec(pad=1)
        )
        self.training = Training(
            model=self.model,
            plan=plan,
            total_updates=total,
            context=PhaseContext(
                step_dir=folder, report=self.reports.append, should_stop=self.should_stop
            ),
            stream="job",
            seed=0,
            meter=self.meter,
            folder=folder / "checkpoints",
            **{"moves": lambda update: (self.move,)} | settings,
        )

    def accumulate(self, batch, update):
        images, labels = batch
        self.meter.forward(len(labels))
        loss = F.cross_entropy(self.model(images), labels)
        if self.poison is not None:
            loss = self.poison(loss, update)
        loss.backward()
        return loss.detach()

    def should_stop(self):
        self.asked += 1
        return self.asked in self.stop_at

    def run(self):
        return self.training.run()

    def state(self):
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}


def interrupted(folder, at, **settings):
    job = Job(folder, stop_at=(at,), **settings)
    with pytest.raises(InterruptedPhaseError, match=f"stopped after update {at} of {TOTAL}"):
        job.run()
    return job


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    job = Job(tmp_path_factory.mktemp("undisturbed"))
    return job, job.run()


@pytest.mark.parametrize("at", [1, 3, 4, 6, 16, 17])
def test_resumed_training_is_the_undisturbed_one_bit_for_bit(tmp_path, undisturbed, at):
    expected, expected_metrics = undisturbed
    interrupted(tmp_path, at)
    torch.manual_seed(4242)  # a new process has another stream
    job = Job(tmp_path)
    metrics = job.run()
    assert state_hash(job.state()) == state_hash(expected.state())
    assert metrics == expected_metrics
    assert job.asked == TOTAL - at
    assert job.meter.total().images == expected.meter.total().images == TOTAL * 16


def test_many_interruptions_are_none(tmp_path, undisturbed):
    expected, expected_metrics = undisturbed
    for at in range(2, TOTAL, 2):
        job = Job(tmp_path, stop_at=(2,))
        with pytest.raises(InterruptedPhaseError, match=f"stopped after update {at} of"):
            job.run()
    job = Job(tmp_path)
    assert job.run() == expected_metrics
    assert state_hash(job.state()) == state_hash(expected.state())


def test_a_network_that_averages_cumulatively_resumes_too(tmp_path):
    expected = Job(tmp_path / "a", momentum=None)
    expected.run()
    interrupted(tmp_path / "b", 6, momentum=None)
    job = Job(tmp_path / "b", momentum=None)
    job.run()
    assert state_hash(job.state()) == state_hash(expected.state())
    assert job.model[1].num_batches_tracked == TOTAL


def test_the_comparison_would_notice_a_lost_momentum(tmp_path, undisturbed):
    expected, _ = undisturbed
    interrupted(tmp_path, 6)
    job = Job(tmp_path)
    job.optimizer.load_state_dict = lambda state: None
    job.run()
    assert state_hash(job.state()) != state_hash(expected.state())


def test_a_finished_training_is_not_trained_again(tmp_path, undisturbed):
    Job(tmp_path).run()
    job = Job(tmp_path)
    assert job.run() == undisturbed[1]
    assert (job.asked, job.reports) == (0, [])
    assert state_hash(job.state()) == state_hash(undisturbed[0].state())


@pytest.mark.parametrize("at", [6, 8])
def test_a_report_once_an_epoch_and_none_twice(tmp_path, undisturbed, at):
    expected = undisturbed[0].reports
    assert [(r["epoch"], r["update"]) for r in expected] == [
        (1, 4), (2, 8), (3, 12), (4, 16), (5, 17)
    ]  # fmt: skip
    assert {r["updates"] for r in expected} == {TOTAL}
    first = interrupted(tmp_path, at)
    second = Job(tmp_path)
    second.run()
    assert first.reports + second.reports == expected


def test_the_reported_loss_is_the_mean_of_the_epoch(tmp_path):
    seen = []
    job = Job(tmp_path, poison=lambda loss, update: seen.append(loss.item()) or loss)
    metrics = job.run()
    assert job.reports[1]["job_loss"] == pytest.approx(sum(seen[4:8]) / 4)
    assert metrics["job_loss"] == pytest.approx(seen[16])


def test_what_an_epoch_s_end_measures_is_measured_once_each(tmp_path):
    def job_and_epochs(folder, **settings):
        epochs = []
        measure = lambda e: epochs.append(e) or {"measured": float(e)}  # noqa: E731
        return Job(folder, after_epoch=measure, **settings), epochs

    job, epochs = job_and_epochs(tmp_path, stop_at=(8,))
    with pytest.raises(InterruptedPhaseError):
        job.run()
    assert epochs == [0, 1]
    job, epochs = job_and_epochs(tmp_path)
    assert job.run()["measured"] == 4.0
    assert epochs == [2, 3, 4]


def test_a_kill_in_the_evaluation_leaves_no_checkpoint_from_before_the_epoch_s_end(
    tmp_path, monkeypatch, undisturbed
):
    monkeypatch.setattr("trainers.loop.CHECKPOINT_UPDATES", 4)  # falls on every epoch's end

    def killed(epoch):
        if epoch == 1:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        Job(tmp_path, after_epoch=killed).run()
    epochs = []
    job = Job(tmp_path, after_epoch=lambda epoch: epochs.append(epoch) or {})
    job.run()
    assert epochs == [1, 2, 3, 4]
    assert [report["epoch"] for report in job.reports] == [2, 3, 4, 5]
    assert state_hash(job.state()) == state_hash(undisturbed[0].state())


def test_updates_between_checkpoints_bound_what_short_epochs_leave(tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.loop.CHECKPOINT_UPDATES", 8)
    Job(tmp_path, total=12, checkpoint_every=100).run()
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-000000008", "step-000000012"]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tmp_path, bad, clip):
    job = Job(
        tmp_path,
        poison=lambda loss, update: loss * bad if update == 6 else loss,
        move={"clip_grad_value": clip},
    )
    with pytest.raises(DivergedError, match=r"job: loss (nan|inf) .* at update 6"):
        job.run()
    assert all(torch.isfinite(p).all() for p in job.model.parameters())
    # The checkpoint is the one of the epoch before, and training goes on from it.
    step, shared, _ = Checkpoints(tmp_path / "checkpoints", 0).newest()
    assert step == 4
    assert all(torch.isfinite(v).all() for v in shared["model"].values())
    well = Job(tmp_path)
    well.run()
    assert well.asked == TOTAL - 4


@pytest.mark.parametrize("parameter", ["0.weight", "1.weight", "5.bias"])
def test_one_gradient_entry_that_is_not_finite_stops_though_the_loss_is(tmp_path, parameter):
    weights = []

    def poison(loss, update):
        weights[:] = [p.detach().clone() for p in job.model.parameters()]
        if update == 2:
            mask = torch.ones_like(job.model.get_parameter(parameter))
            mask.view(-1)[-1] = math.nan
            job.model.get_parameter(parameter).register_hook(lambda grad: grad * mask)
        return loss

    job = Job(tmp_path, poison=poison)
    with pytest.raises(DivergedError, match="largest gradient nan at update 2"):
        job.run()
    assert all(torch.equal(p, w) for p, w in zip(job.model.parameters(), weights, strict=True))


def test_weights_that_overflow_never_become_a_checkpoint(tmp_path):
    # The step after the last gradient of the second epoch overflows: only the weights show it.
    def overflow(update):
        if update == 7:
            job.model[5].bias.data[3] = math.inf

    job = Job(tmp_path, move={"after": overflow})
    with pytest.raises(DivergedError, match="a parameter is not finite after update 8"):
        job.run()
    step, shared, _ = Checkpoints(tmp_path / "checkpoints", 0).newest()
    assert step == 4
    assert all(torch.isfinite(v).all() for v in shared["model"].values())


def test_gradients_are_clipped_by_value(tmp_path):
    job = Job(tmp_path, total=1, move={"clip_grad_value": 1e-3, "learning_rate": lambda u: 1.0})
    before = [p.detach().clone() for p in job.model.parameters()]
    job.run()
    moved = [
        (p - b).abs().max().item() for p, b in zip(job.model.parameters(), before, strict=True)
    ]
    assert max(moved) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("drop", [True, False])
def test_a_zero_gradient_moves_nothing_when_dropped(tmp_path, drop):
    def without_convolution(batch, update):
        images, labels = batch
        loss = F.cross_entropy(job.model(images), labels)
        loss.backward()
        if update > 0:
            job.model[0].weight.grad.zero_()
        return loss.detach()

    weights = []
    job = Job(tmp_path, total=2)
    job.move = replace(
        job.move,
        accumulate=without_convolution,
        drop_zero_grads=drop,
        after=lambda update: weights.append(job.model[0].weight.detach().clone()),
    )
    job.run()
    # Momentum of the first update would go on moving it.
    assert torch.equal(weights[0], weights[1]) is drop


def test_moves_take_turns_on_the_same_batch(tmp_path):
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    seen = []

    def move(name, parameter):
        def accumulate(batch, update):
            seen.append((name, update, batch[1].tolist()))
            loss = (parameter - 1).square().sum()
            loss.backward()
            return loss.detach()

        return Move(
            name=name, optimizer=torch.optim.SGD([parameter], lr=0.25), accumulate=accumulate
        )

    moves = (move("a", first), move("b", second))
    metrics = Job(tmp_path, total=4, moves=lambda u: moves).run()
    assert [s[:2] for s in seen] == [(n, u) for u in range(4) for n in "ab"]
    assert all(seen[i][2] == seen[i + 1][2] for i in range(0, 8, 2))
    assert metrics["a_loss"] == metrics["b_loss"] > 0
    shared = load_tensors(tmp_path / "checkpoints" / "step-000000004" / "shared.pt")
    assert set(shared["optimizers"]) == {"a", "b"}


def test_a_move_that_checkpoints_would_lose_is_refused(tmp_path):
    job = Job(tmp_path)
    other = Job(tmp_path / "other")
    job.training.moves = lambda u: (job.move,) if u == TOTAL - 1 else (other.move,)
    with pytest.raises(ValueError, match="'job' is not among those of the last update"):
        job.run()


def test_extra_state_is_saved_and_restored(tmp_path):
    class Counter:
        count = 0

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]

    def job_with(counter, **settings):
        def count(update):
            counter.count += 1

        return Job(tmp_path, extra={"counter": counter}, move={"after": count}, **settings)

    with pytest.raises(InterruptedPhaseError):
        job_with(Counter(), stop_at=(6,)).run()
    counter = Counter()
    job_with(counter).run()
    assert counter.count == TOTAL


def test_damaged_checkpoints_never_mean_a_silent_start(tmp_path):
    interrupted(tmp_path, 6)
    for path in (tmp_path / "checkpoints").glob("step-*/shared.pt"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="damaged"):
        Job(tmp_path).run()


def test_a_damaged_newest_goes_back_one_and_ends_alike(tmp_path, undisturbed):
    interrupted(tmp_path, 6)
    path = tmp_path / "checkpoints" / "step-000000006" / "shared.pt"
    path.write_bytes(path.read_bytes()[:-1])
    job = Job(tmp_path)
    job.run()
    assert job.asked == TOTAL - 4
    assert state_hash(job.state()) == state_hash(undisturbed[0].state())


def test_checkpoints_follow_their_interval(tmp_path):
    Job(tmp_path, total=12, checkpoint_every=2).run()
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-000000008", "step-000000012"]
