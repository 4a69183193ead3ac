"""Batches: their order, the workers that read them, and what happens when a worker dies or hangs."""
