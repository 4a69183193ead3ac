"""A small HTTP service of one model or an ensemble: python -m inference.serve."""
