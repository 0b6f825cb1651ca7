"""How many rows or tokens go into one forward."""
