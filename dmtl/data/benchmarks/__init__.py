"""Readers of benchmarks as their authors distribute them, for conversion to the folder format."""
