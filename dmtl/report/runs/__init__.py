"""Read runs from their folders and compare them, independent of any page."""
