"""Checks of memory's books: cheap ones after each step, thorough ones for tests."""
