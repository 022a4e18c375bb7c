"""The one loop that every phase trains with.

A phase hands over *moves*. A move is one optimizer update: ``accumulate`` runs whatever passes it
wants on the batch and leaves gradients behind; the loop averages them over ranks once, checks that
they are finite, clips, steps and schedules. LIMPQ's joint step is one move of n + 1 passes;
MetaMix's second epoch is two moves on the same batch; plain training is one move of one pass. Where
the recipe accumulates, the loop hands a move the batch in parts.

The loop owns position, checkpoints, reports and stopping, so that they are the same for all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainers.checkpoint import Checkpoints, buffers_of
from trainers.data.batches import Batch, BatchPlan
from trainers.distributed import average_norm_statistics, check_same, reduce_gradients
from trainers.errors import DivergedError, InterruptedPhaseError, ModelError
from trainers.loss_scale import LEAST
from trainers.meters import Meter
from trainers.optim import set_learning_rate
from trainers.phases import Cost, PhaseContext
from trainers.precision import loss_scale_of
from trainers.quant.bank import StepBank
from trainers.seeds import derive

# Updates between checkpoints inside an epoch: ImageNet at batch 256 has 5,005 updates an epoch.
CHECKPOINT_UPDATES = 1000
PROGRESS_EVERY_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Move:
    """One optimizer update on a batch.

    Attributes:
        name: prefix of its logged loss.
        optimizer: its parameters are the ones that may change.
        accumulate: (batch, update number) -> mean loss; leaves gradients in the parameters.
        learning_rate: update number -> rate; None leaves the optimizer's own.
        clip_grad_value: bound on every gradient entry, applied after the ranks are averaged.
        drop_zero_grads: give a parameter whose gradient is all zero no momentum and no decay.
        after: called after the step (moving averages).
    """

    name: str
    optimizer: torch.optim.Optimizer
    accumulate: Callable[[Batch, int], Tensor]
    learning_rate: Callable[[int], float] | None = None
    clip_grad_value: float | None = None
    drop_zero_grads: bool = False
    after: Callable[[int], None] | None = None

    def parameters(self) -> list[nn.Parameter]:
        """The parameters of the optimizer."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]


@dataclass(kw_only=True)
class Training:
    """A whole training: what moves, over which batches, for how long, kept where.

    Attributes:
        model: the network; its state and the optimizers' make the checkpoint.
        plan: the batches.
        total_updates: batches to train on; it may end inside an epoch.
        moves: update number -> the moves on that batch. Names tell moves apart, and the last
            update has every optimizer there is, for checkpoints hold what it has.
        context: rank, folder, reports.
        stream: name of the phase's random stream.
        seed: of the run.
        meter: counts passes and images.
        extra: more state to save, by name (moving averages, architecture parameters).
        checkpoint_every: epochs between checkpoints.
        after_epoch: extra metrics at the end of an epoch.
    """

    model: nn.Module
    plan: BatchPlan
    total_updates: int
    moves: Callable[[int], Sequence[Move]]
    context: PhaseContext
    stream: str
    seed: int
    meter: Meter
    folder: Path
    extra: Mapping[str, Any] = field(default_factory=dict)
    checkpoint_every: int = 1
    after_epoch: Callable[[int], Mapping[str, float]] | None = None
    _losses: dict[str, float] = field(default_factory=dict, init=False)
    _metrics: dict[str, float] = field(default_factory=dict, init=False)
    _next_word: float = field(default=0.0, init=False)

    def run(self) -> dict[str, float]:
        """Train to the end, from the newest checkpoint if there is one.

        Returns:
            The metrics of the last epoch.

        Raises:
            DivergedError: a loss or gradient stopped being finite; the checkpoint before stands.
            InterruptedPhaseError: the driver asked to stop; a checkpoint is written.
        """
        checkpoints = Checkpoints(self.folder, self.context.rank)
        update = self._restore(checkpoints)
        check_same("the update to go on from", update, self.context.device)
        per_epoch = self.plan.num_batches
        self.model.train()
        while update < self.total_updates:
            epoch, first = divmod(update, per_epoch)
            if first == 0:
                self._losses.clear()
            stop = False
            for batch in self.plan.epoch(epoch, first):
                stop = self._update(batch, update)
                update += 1
                if stop or update == self.total_updates:
                    break
                # At an epoch's end only below: a resume from here would leave that end out.
                if update % CHECKPOINT_UPDATES == 0 and update % per_epoch:
                    self._save(checkpoints, update)
                self._say_progress(epoch, update)
            # What an epoch's end does is done before a stop, or a resume would leave it out; and
            # it is done where training ends inside an epoch, for all ranks go on alike from there.
            ended = update % per_epoch == 0 or update == self.total_updates
            if ended:
                self._end_epoch(epoch, update)
            last = update == self.total_updates
            due = (epoch + 1) % self.checkpoint_every == 0 or update % CHECKPOINT_UPDATES == 0
            if stop or last or due:
                self._save(checkpoints, update)
            if ended:
                self.context.report(
                    {
                        "epoch": epoch + 1,
                        "update": update,
                        "updates": self.total_updates,
                        **self._metrics,
                    }
                )
            if stop:
                raise InterruptedPhaseError(
                    f"stopped after update {update} of {self.total_updates}; "
                    "the same command goes on from there"
                )
        return dict(self._metrics)

    def _say_progress(self, epoch: int, update: int) -> None:
        """Where an epoch takes long: a line now and then, of this rank alone, without a barrier."""
        now = time.monotonic()
        if now < self._next_word:
            return
        done = update - epoch * self.plan.num_batches
        if self._next_word:
            means = {name: value / done for name, value in self._losses.items()}
            where = {"epoch": epoch + 1, "update": update, "updates": self.total_updates}
            self.context.progress({**where, **means})
        self._next_word = now + PROGRESS_EVERY_S

    def _end_epoch(self, epoch: int, update: int) -> None:
        """Average statistics over ranks, and take the epoch's metrics."""
        average_norm_statistics(self.model)
        done = update - epoch * self.plan.num_batches
        self._metrics = {name: value / done for name, value in self._losses.items()}
        if self.after_epoch is not None:
            self._metrics.update(self.after_epoch(epoch))
            self.model.train()

    def _update(self, batch: Batch, update: int) -> bool:
        """All moves on one batch; true when a rank asked to stop."""
        # Networks with dropout draw from torch's own stream: the same at a resume.
        torch.manual_seed(derive(self.seed, self.stream, "step", update, self.context.rank))
        device = self.context.device
        if device != "cpu":
            batch = (
                batch[0].to(device, non_blocking=True),
                batch[1].to(device, non_blocking=True),
            )
        wants_to_stop = False
        saved = self._optimizers()
        for move in self.moves(update):
            if saved.get(move.name) is not move.optimizer:
                raise ValueError(f"move {move.name!r} is not among those of the last update")
            move.optimizer.zero_grad(set_to_none=True)
            parameters = move.parameters()
            loss = self._passes(move, batch, update, parameters)
            mean_loss, num_stopping = reduce_gradients(parameters, loss, self.context.should_stop())
            largest = _largest_entries([p.grad for p in parameters])
            if not self._overflowed(mean_loss, max(largest, key=_size)):
                self._refuse_divergence(move, mean_loss, max(largest, key=_size), update)
                _step(move, parameters, largest, update)
            if move.after is not None:
                move.after(update)
            name = f"{move.name}_loss"
            self._losses[name] = self._losses.get(name, 0.0) + mean_loss
            wants_to_stop = wants_to_stop or num_stopping > 0
        return wants_to_stop

    def _passes(
        self, move: Move, batch: Batch, update: int, parameters: list[nn.Parameter]
    ) -> Tensor:
        """The move's passes on the batch, part by part; leaves the gradient of its mean loss."""
        scale = loss_scale_of(self.model)
        if scale is not None:
            scale.used = False
        parts = self.plan.accumulate
        if parts == 1:
            loss = move.accumulate(batch, update)
        else:
            if update == 0 and any(isinstance(m, StepBank) for m in self.model.modules()):
                self._start_from_whole(move, batch)
            meter = self.meter
            before = (meter.forward_passes, meter.backward_passes)
            each = zip(*(tensor.chunk(parts) for tensor in batch), strict=True)
            loss = torch.stack([move.accumulate(part, update).detach() for part in each]).mean()
            # A pass is one over a global batch, in however many parts.
            meter.forward_passes = before[0] + (meter.forward_passes - before[0]) // parts
            meter.backward_passes = before[1] + (meter.backward_passes - before[1]) // parts
        if scale is not None and not scale.used:
            raise ModelError(f"{move.name} does not scale its loss; use precision bf16 or fp32")
        factor = 1.0 / (parts * (1.0 if scale is None else scale.value))
        if factor != 1.0:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
        return loss

    def _start_from_whole(self, move: Move, batch: Batch) -> None:
        """Let the first passes of all see the whole share, without gradients.

        They start the activations' step sizes, which must not depend on how a batch is cut.
        BatchNorm statistics are put back.
        """
        kept = {n: b.clone() for n, b in self.model.named_buffers() if _is_statistic(n)}
        num_backward = self.meter.backward_passes
        with torch.no_grad():
            move.accumulate(batch, 0)
            self.meter.backward_passes = num_backward
            for name, buffer in self.model.named_buffers():
                if name in kept:
                    buffer.copy_(kept[name])

    def _overflowed(self, loss: float, largest: float) -> bool:
        """Whether a scaled gradient left float16's range: such an update is skipped."""
        scale = loss_scale_of(self.model)
        if scale is None or not math.isfinite(loss):
            return False
        overflowed = not math.isfinite(largest)
        scale.after_update(overflowed=overflowed)
        return overflowed and scale.value >= LEAST

    def _refuse_divergence(self, move: Move, loss: float, largest: float, update: int) -> None:
        """Stop before the step: after it, a NaN would be in the weights too.

        The decision is taken on values already averaged over ranks, so all ranks take it alike.
        """
        if not math.isfinite(loss) or not math.isfinite(largest):
            raise DivergedError(
                f"{move.name}: loss {loss} and largest gradient {largest} at update {update}; "
                f"the last checkpoint in {self.folder} is from before. Lower the learning rate "
                "or clip gradients"
            )

    def _refuse_broken_weights(self, update: int) -> None:
        """A step can overflow with a finite gradient; such weights must not become a checkpoint."""
        moved = [
            p for o in self._optimizers().values() for g in o.param_groups for p in g["params"]
        ]
        if not math.isfinite(max(_largest_entries(moved), key=_size)):
            raise DivergedError(
                f"{self.stream}: a parameter is not finite after update {update}; the last "
                f"checkpoint in {self.folder} is from before. Lower the learning rate"
            )

    def _save(self, checkpoints: Checkpoints, update: int) -> None:
        self._refuse_broken_weights(update)
        cost = self.meter.total()
        shared = {
            "model": self.model.state_dict(),
            "optimizers": {name: o.state_dict() for name, o in self._optimizers().items()},
            "extra": {name: value.state_dict() for name, value in self.extra.items()},
            "cost": {f: getattr(cost, f) for f in Cost.__dataclass_fields__},
            "losses": self._losses,
            "metrics": self._metrics,
        }
        scale = loss_scale_of(self.model)
        if scale is not None:
            shared["loss_scale"] = scale.state_dict()
        checkpoints.save(update, shared, {"buffers": buffers_of(self.model)})

    def _restore(self, checkpoints: Checkpoints) -> int:
        found = checkpoints.newest(self.context.device)
        if found is None:
            return 0
        update, shared, own = found
        self.model.load_state_dict(shared["model"])
        for name, buffer in self.model.named_buffers():
            buffer.data.copy_(own["buffers"][name])
        for name, optimizer in self._optimizers().items():
            optimizer.load_state_dict(shared["optimizers"][name])
        for name, value in self.extra.items():
            value.load_state_dict(shared["extra"][name])
        scale = loss_scale_of(self.model)
        if scale is not None:
            scale.load_state_dict(shared["loss_scale"])
        self.meter.before = Cost(**shared["cost"])
        self._losses, self._metrics = shared["losses"], shared["metrics"]
        return update

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Every optimizer there is, by its move's name."""
        return {move.name: move.optimizer for move in self.moves(self.total_updates - 1)}


def _step(
    move: Move, parameters: list[nn.Parameter], largest: Sequence[float], update: int
) -> None:
    """Clip, schedule and step."""
    if move.clip_grad_value is not None:
        nn.utils.clip_grad_value_(parameters, move.clip_grad_value)
    if move.drop_zero_grads:
        for parameter, entry in zip(parameters, largest, strict=True):
            if entry == 0.0:
                parameter.grad = None
    if move.learning_rate is not None:
        set_learning_rate(move.optimizer, move.learning_rate(update))
    move.optimizer.step()


def _largest_entries(tensors: Sequence[Tensor | None]) -> list[float]:
    """The largest absolute entry of each tensor, NaN where one is NaN, -1 where there is none.

    One transfer for all of them: a look at each would stall a GPU as often.
    """
    found = [t.detach() for t in tensors if t is not None and t.numel()]
    if not found:
        return [-1.0] * len(tensors)
    norms = iter(torch.stack([torch.linalg.vector_norm(t, math.inf) for t in found]).tolist())
    return [next(norms) if t is not None and t.numel() else -1.0 for t in tensors]


def _is_statistic(name: str) -> bool:
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def _size(value: float) -> float:
    """Sorts NaN above everything, where ``max`` would lose it."""
    return math.inf if math.isnan(value) else value
