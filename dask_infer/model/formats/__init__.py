"""Model formats: how each is recognised, loaded and described."""
