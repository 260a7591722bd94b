"""Runs as they lie in their folders, and how they compare: no page is known here."""
