"""Read runs from their folders and compare them."""
