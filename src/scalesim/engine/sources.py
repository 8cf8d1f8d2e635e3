"""The sources of an engine: what is checked before the loop listens to one, and how one tells it
news."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from scalesim.checks import listed, shown
from scalesim.distance.estimates import Source
from scalesim.distance.voice import Voice, voice_of
from scalesim.engine.inbox import Inbox
from scalesim.errors import ConfigError


class EngineListener:
    """A world of an engine, as its sources know it: open as long as its ``inbox`` is."""

    def __init__(self, inbox: Inbox, poll: Callable[[], None]) -> None:
        self.inbox, self._poll = inbox, poll

    @property
    def is_closed(self) -> bool:
        return self.inbox.is_closed

    def has_news(self) -> None:
        self.inbox.post_if_open(self._poll)


def checked_voices(sources: object) -> list[Voice]:
    """The voices of a list of sources that no engine listens to. Raises ``ConfigError``."""
    if isinstance(sources, Source):
        sources = [sources]
    rule = "must be a list of sources: [Learned()]"
    voices = [unheard(source) for source in listed("sources", sources, rule, ConfigError)]
    for name, count in Counter(voice.name for voice in voices).items():
        if count > 1:
            raise ConfigError(f"{count} sources are named {shown(name)}; give each its own name=")
    return voices


def unheard(source: object) -> Voice:
    """The voice of ``source``. Raises ``ConfigError`` for what is no source with a name, and if an
    engine that is open listens to it: it would tell its news to one of two."""
    voice = voice_of(source)
    if voice.is_heard:
        raise ConfigError(
            f"an engine listens to source {shown(voice.name)} already; make one for each engine, "
            "or close that engine first"
        )
    return voice
