"""Evaluation: metrics of a model or of saved predictions over a data set."""
