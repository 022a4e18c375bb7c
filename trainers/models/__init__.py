"""The networks: own definitions, torchvision's by name, and the user's factories."""

from trainers.models.registry import build_model, check_weights, model_names, weights_file
from trainers.models.weights import load_weights, weights_hash

__all__ = [
    "build_model",
    "check_weights",
    "load_weights",
    "model_names",
    "weights_file",
    "weights_hash",
]
