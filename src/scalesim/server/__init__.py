"""The HTTP server: an engine behind OpenAI's API, and ScaleSim's own routes beside it.

One process: uvicorn's event loop reads and writes, the engine's own thread computes, and a few
threads parse large bodies and render prompts, so that nothing slow runs on the loop. ``app`` has
the table of routes, ``gate`` what every request passes first. The extra ``server`` installs what
this needs.
"""
