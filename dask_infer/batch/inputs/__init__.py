"""Columns to the arguments of a model, batch by batch."""
