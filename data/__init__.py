"""Images and labels: readers, catalogues, splits, transforms, loaders. `data.builder` reads the config."""
