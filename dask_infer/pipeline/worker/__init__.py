"""The workers' side: feeders send microbatches, stages run them."""
