"""Building blocks: parameters and calls, with no formulas beyond standard layers."""
