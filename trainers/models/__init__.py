"""The networks: own definitions, torchvision's by name, and the user's factories."""

from trainers.models.registry import build_model, model_names
from trainers.models.weights import load_weights, weights_hash

__all__ = ["build_model", "load_weights", "model_names", "weights_hash"]
