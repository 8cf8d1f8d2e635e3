"""What is on which tier, and what leaves first."""
