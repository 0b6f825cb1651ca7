"""The code around a model's layers, exported; the layers as calls of one operator."""
