"""From data sets to batches: transforms, order, the loader and its caches."""
