"""A voice: one source of hints as an engine hears it, with its ledger, and why it is silent."""

from __future__ import annotations

from dataclasses import dataclass, field

from scalesim.checks import instance, reading, shown, text
from scalesim.core import AgentId
from scalesim.distance.calendar import Calendar
from scalesim.distance.estimates import Listener, Source
from scalesim.distance.ledger import Ledger
from scalesim.errors import ConfigError
from scalesim.foreign import Foreign


@dataclass(slots=True)
class Voice:
    """A source and what it says. ``source`` is ``None`` for what users declare."""

    name: str
    ledger: Ledger
    source: Source | None = None
    failed: str = ""  # what it raised, or said that are no estimates: it is not asked any more
    # whom it speaks of and nobody is so far, and when each is to call
    strangers: dict[AgentId, float] = field(default_factory=dict)
    strangers_due: Calendar = field(default_factory=Calendar)
    misnamed: dict[AgentId, None] = field(default_factory=dict)  # who never came; the last few

    @property
    def is_heard(self) -> bool:
        """Whether an engine that is open listens to the source."""
        listener = None if self.source is None else self.source.heard_by
        return listener is not None and not listener.is_closed

    def heard_by(self, listener: Listener) -> None:
        """The source tells ``listener`` its news from now on."""
        if self.source is not None:
            self.source.heard_by = listener


def voice_of(source: object) -> Voice:
    """Raises ``ConfigError`` for what is no source, or has no name."""
    instance("source", source, Source, "Learned(), or a class of your own", ConfigError)
    assert isinstance(source, Source)
    with reading("a source's name", ConfigError):
        name = text("a source's name", source.name, ConfigError, empty=False)
        return Voice(name, Ledger(judges_itself=bool(source.judges_itself)), source)


def silence_of(voice: Voice) -> str:
    """Why nothing is heard of ``voice``; empty if something may be."""
    if voice.failed:
        return f"it failed and is not asked again: {voice.failed}"
    if voice.ledger.score.muted:
        return f"its predictions seldom come true (trust {voice.ledger.score.trust:.2f})"
    if voice.source is None:
        return ""
    with Foreign() as raised:
        return str(voice.source.why_silent())
    return f"it cannot say why: {shown(raised.error)}"
