"""Outputs of a model to columns."""
