"""HybridMedNet from Python: train, load, ask."""
