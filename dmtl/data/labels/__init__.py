"""Which images have labels of which tasks: the label matrix and the published tables."""
