"""The Dask expression of a prediction, and the functions that its tasks call."""
