"""The HTTP server: an OpenAI-compatible door to one engine. Extra ``[server]``."""
