"""What travels between feeders, stages and the scheduler."""
