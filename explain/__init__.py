"""Which places of an image speak for a class, and whether that can be trusted."""
