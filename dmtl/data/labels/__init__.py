"""Which image has a label for which task: the matrix of labels and the published splits."""
