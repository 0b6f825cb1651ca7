"""Rows to tensors and back: pure pandas, NumPy and torch."""
