"""What runs on workers: feeders send microbatches, stages run them."""
