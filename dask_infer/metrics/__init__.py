"""Counters of what runs: ambient in a process, summed over a cluster; no Dask here."""
