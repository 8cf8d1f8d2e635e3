"""``scalesim serve``: a model over OpenAI's HTTP API. What it says goes to stderr."""

from __future__ import annotations

import gc
import logging
import signal
import sys

from scalesim.cli.serve_options import ServeOptions
from scalesim.errors import ConfigError, ScaleSimError


def serve(options: ServeOptions) -> int:
    """Exit code 0 once the server has been told to stop. Raises ``ScaleSimError`` where nothing
    could be served, ``KeyboardInterrupt`` after Ctrl-C."""
    try:
        from scalesim.server.app import make_app
        from scalesim.server.config import ServerConfig, ServerLimits
        from scalesim.server.listen import Server
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("scalesim"):
            raise
        raise ConfigError(
            f"serve needs {error.name}: pip install 'scalesim-runtime[server]'"
        ) from error
    from scalesim.engine.engine import Engine

    settings, adapters = options.engine(), options.adapters()
    limits = ServerLimits(**options.limits())
    config = ServerConfig(**options.server(), adapters=adapters, limits=limits)

    def load() -> Engine:
        engine = Engine(options.model, settings, dummy_weights=options.dummy_weights)
        try:
            for name, folder in adapters.items():
                engine.adapters.add(name, folder)
        except BaseException:
            engine.close()
            raise
        gc.collect()
        gc.freeze()  # what is loaded stays: the collector need not look at it, and stop all threads
        say(f"serving {', '.join((*config.names, *adapters))} on {engine.device}")
        return engine

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    app = make_app(load, config)
    server = Server(app, config)
    server.on_listening = lambda url: say(f"{url}/v1 (loading {options.model})")
    server.run()
    if isinstance(server.error, ScaleSimError):
        raise server.error
    if server.error is not None:
        raise ConfigError(f"the engine did not start: {server.error}") from server.error
    if signal.SIGINT in server.signals:
        raise KeyboardInterrupt
    return 0


def say(line: str) -> None:
    """One line for whoever watches."""
    print(f"scalesim: {line}", file=sys.stderr, flush=True)
