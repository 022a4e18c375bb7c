"""What does a frozen teacher add to the loss?

Cross entropy plus ``weight`` times the soft cross entropy to the teacher's probabilities:

    L = CE(z, y) + weight * sum_c -softmax(z_teacher)_c * log softmax(z)_c

PROFIT and NIPQ train so with equal weights and a larger teacher. Without a model of its own the
teacher is the network itself in full precision.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.models import build_model
from trainers.phases import ModelSpec, PhaseContext, PhaseSpec
from trainers.recipes import DistillationConfig


class TeacherLoss:
    """The task loss of a phase, with or without a teacher.

    Args:
        teacher: network in evaluation mode, or None for plain cross entropy.
        config: weights of the two terms; read only with a teacher.
        label_smoothing: of the hard cross entropy.
    """

    def __init__(
        self,
        teacher: nn.Module | None,
        config: DistillationConfig | None,
        label_smoothing: float,
    ) -> None:
        self.teacher = None if teacher is None else teacher.eval().requires_grad_(False)
        self.config = config or DistillationConfig()
        self.label_smoothing = label_smoothing

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tensor | None:
        """The teacher's probabilities [B, classes]; once a batch, whatever the passes."""
        if self.teacher is None:
            return None
        logits: Tensor = self.teacher(images)
        return F.softmax(logits.float() / self.config.temperature, dim=1)

    def __call__(self, logits: Tensor, labels: Tensor, soft: Tensor | None = None) -> Tensor:
        """Mean loss of ``logits`` [B, classes]."""
        hard = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if soft is None:
            return hard
        config = self.config
        teacher_term = F.cross_entropy(logits / config.temperature, soft)
        return config.hard_weight * hard + config.weight * teacher_term


def make_loss(
    config: DistillationConfig | None,
    label_smoothing: float,
    spec: PhaseSpec,
    context: PhaseContext,
) -> TeacherLoss:
    """The loss of a phase; its teacher is ``config.model``, else the network of ``spec``.

    The network's own weights are the role ``teacher`` of the inputs, else ``weights``.

    Raises:
        ModelError: the teacher cannot be built or its weights do not fit.
    """
    if config is None:
        return TeacherLoss(None, None, label_smoothing)
    from trainers.setup import make_network

    if config.model is None:
        inputs = dict(spec.inputs)
        if "teacher" in inputs:
            inputs["weights"] = inputs["teacher"]
        teacher = make_network(replace(spec, inputs=inputs), context)
    else:
        own = ModelSpec(
            name=config.model,
            num_classes=spec.model.num_classes,
            options=config.options,
            weights=config.weights,
        )
        teacher = build_model(own).to(context.device)
    return TeacherLoss(teacher, config, label_smoothing)
