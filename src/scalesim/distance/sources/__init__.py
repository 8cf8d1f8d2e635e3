"""Sources of predictions for simulations that know something of their agents' next calls."""
