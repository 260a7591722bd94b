"""Tables of the published results, with runs next to them."""
