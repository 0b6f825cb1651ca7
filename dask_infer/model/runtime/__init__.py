"""A model in this process, ready to be called with a batch."""
