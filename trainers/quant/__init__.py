"""Learned step size quantization: the quantizer, its banks, and wrapping of whole networks."""
