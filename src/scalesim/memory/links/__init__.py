"""Links: what copies pages between tiers."""
