"""What is loaded before it is asked for."""
