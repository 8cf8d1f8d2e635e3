"""Links: what copies pages between two tiers."""
