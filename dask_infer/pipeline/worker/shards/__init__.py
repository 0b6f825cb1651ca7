"""What the shards of a stage do together."""
