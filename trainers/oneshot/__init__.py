"""Jointly trained weights as the judge of whole policies, without training any of them."""
