"""Benchmarks as their authors distribute them, and their conversion to the folder format."""
