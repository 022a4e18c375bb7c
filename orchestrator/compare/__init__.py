"""Several runs side by side, and what a few numbers support."""
