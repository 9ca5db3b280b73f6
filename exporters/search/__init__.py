"""Choosing among variants: measure, blame, decide."""
