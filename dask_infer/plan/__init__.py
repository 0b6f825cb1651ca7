"""Facts in, layout and reasons out: arithmetic, with the standard library alone.

It asks no cluster, loads no model and reads no clock, so each answer is a table that a
test can hold against brute force.
"""
