"""From a layout to something that a partition's batches can be fed to."""
