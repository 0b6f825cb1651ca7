"""What the user gave, known by its content and made a model in a process."""
