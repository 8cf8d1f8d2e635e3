"""The layers that compute a model."""
