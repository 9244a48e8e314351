"""The sections of docs/RESULTS.md: each function writes one from its figures."""
