"""Baselines measured in the same harness as the papers."""
