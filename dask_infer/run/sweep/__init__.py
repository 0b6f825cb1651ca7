"""Layer groups one after the other: each loaded once for all rows that wait."""
