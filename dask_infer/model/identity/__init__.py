"""Content keys: equal content gives equal keys, and pickles without copies."""
