"""Train the full-precision network that every method starts from."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from trainers.checkpoint import save_tensors
from trainers.data import Batch
from trainers.evaluate import evaluate
from trainers.loop import Move, Training
from trainers.meters import Meter, device_name
from trainers.models import weights_file, weights_hash
from trainers.optim import learning_rate, make_sgd, num_updates
from trainers.phases import PhaseContext, PhaseResult, PhaseSpec
from trainers.precision import backward, run_as
from trainers.recipes import PretrainConfig
from trainers.results import finish_phase, load_result
from trainers.setup import make_data, make_network, make_plan


def run(spec: PhaseSpec, context: PhaseContext) -> PhaseResult:
    """Train with plain SGD and report the accuracy on the test images.

    ``config`` is a ``PretrainConfig``, or None to only measure given weights.
    Outputs: ``weights`` (state dict). Metrics: ``top1``, ``top5``, ``loss``.
    """
    done = load_result(context.step_dir / "result.json")
    if done is not None:
        return done
    recipe: PretrainConfig | None = spec.config
    data = make_data(spec, context)
    model = make_network(spec, context)
    meter = Meter(context.device)
    if recipe is not None:
        run_as(model, recipe)
        plan = make_plan(data.train, data, recipe, spec, context)
        total = num_updates(recipe, plan.num_batches)

        def accumulate(batch: Batch, update: int) -> Tensor:
            images, labels = batch
            loss = F.cross_entropy(model(images), labels, label_smoothing=recipe.label_smoothing)
            meter.forward(len(labels))
            backward(model, loss)
            meter.backward()
            return loss

        move = Move(
            name="pretrain",
            optimizer=make_sgd(model.parameters(), recipe),
            accumulate=accumulate,
            learning_rate=lambda u: learning_rate(recipe, u, total, plan.num_batches),
            clip_grad_value=recipe.clip_grad_value,
        )
        Training(
            model=model,
            plan=plan,
            total_updates=total,
            moves=lambda update: (move,),
            context=context,
            stream=spec.phase,
            seed=spec.seed,
            meter=meter,
            folder=context.step_dir / "checkpoints",
        ).run()
    cost = meter.total()
    evaluation = Meter(context.device)
    metrics = evaluate(model, data.test, spec.eval_batch_size, context, evaluation)
    result = PhaseResult(
        phase=spec.phase,
        outputs={"weights": "weights.pt"},
        metrics=metrics,
        cost=cost,
        eval_cost=evaluation.total(),
        device=device_name(context.device),
        facts={
            "data_fingerprint": data.fingerprint,
            "num_train_images": len(data.train),
            "num_test_images": len(data.test),
            **_given(spec),
        },
    )
    if context.rank == 0:
        save_tensors(context.step_dir / "weights.pt", model.state_dict())
        finish_phase(context.step_dir, result)
    return result


def _given(spec: PhaseSpec) -> dict[str, str]:
    """Which file the weights came from, for whoever doubts them later; empty for fresh ones."""
    path = weights_file(spec.model)
    return {} if path is None else {"weights_sha256": weights_hash(path)}
