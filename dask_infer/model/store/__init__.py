"""The content store: weights on disk, one directory a user and host."""
