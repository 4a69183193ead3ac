"""From images to probabilities with models that are trained: ensembles, test-time augmentation, what is unlike."""
