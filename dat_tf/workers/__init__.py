"""The workers of a run: who they are, that all are there, and that they agree."""
