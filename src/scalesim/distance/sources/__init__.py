"""Sources of distance: what simulations know of who is next."""
