"""Images and labels: readers, dataset indexes, splits, transforms, loaders. `data.builder` reads the config."""
