"""What is shown in notebooks, and the same as text."""
