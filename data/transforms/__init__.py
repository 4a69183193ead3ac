"""From decoded pixels to a model's input: intensity, size, augmentation, normalisation."""
