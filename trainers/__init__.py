"""Training phases over torch: what learns, and how a network is quantized while it does."""
