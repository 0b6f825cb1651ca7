"""What a model returns, found without its weights and without data."""
