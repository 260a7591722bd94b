"""The published results, and runs in tables next to them."""
