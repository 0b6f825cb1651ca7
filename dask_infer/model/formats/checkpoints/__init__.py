"""Weights by name, from the files that the formats keep them in."""
