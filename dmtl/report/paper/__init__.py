"""Tables of the published results, next to results of runs."""
