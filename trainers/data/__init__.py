"""Images by name: ``load_data(DataSpec)`` gives the sets a phase trains and evaluates on."""

from trainers.data.batches import Batch, BatchPlan, balanced_fraction, evaluation_batches
from trainers.data.images import ImageData, ImageSet, InMemoryImages, Normalisation
from trainers.data.sources import (
    data_names,
    input_rule,
    input_shape,
    known_classes,
    load_data,
    source_fingerprint,
)

__all__ = [
    "Batch",
    "BatchPlan",
    "ImageData",
    "ImageSet",
    "InMemoryImages",
    "Normalisation",
    "balanced_fraction",
    "data_names",
    "evaluation_batches",
    "input_rule",
    "input_shape",
    "known_classes",
    "load_data",
    "source_fingerprint",
]
