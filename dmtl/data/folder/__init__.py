"""The folder format: reading, writing and checking it."""
