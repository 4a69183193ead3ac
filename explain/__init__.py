"""Which places of a picture speak for a class, and whether that can be trusted."""
