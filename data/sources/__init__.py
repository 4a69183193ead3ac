"""Where studies come from: the formats of a data source, each opened as a dataset index."""
