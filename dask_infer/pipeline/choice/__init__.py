"""The layout that ``parallel="auto"`` takes: facts gathered, and one chosen.

Runs in the task of the group request, and on the client for `explain`.
"""
