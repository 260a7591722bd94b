"""Training on partially labelled images."""
