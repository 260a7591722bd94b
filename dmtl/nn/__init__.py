"""Building blocks: parameters and calls, no formulas of their own beyond standard layers."""
