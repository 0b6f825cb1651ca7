"""Text to padded tokens, and generated tokens back."""
