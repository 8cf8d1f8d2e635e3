"""A voice: one source of hints as an engine hears it, with its ledger, and why it is silent."""

from __future__ import annotations

from dataclasses import dataclass, field

from scalesim.checks import reading, shown
from scalesim.core import AgentId
from scalesim.distance.calendar import Calendar
from scalesim.distance.estimates import Source
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


def voice_of(source: Source) -> Voice:
    """Raises ``ConfigError`` for what is no source, or has no name."""
    if not isinstance(source, Source):
        raise ConfigError(
            f"{shown(source)} is no source; give objects of classes that inherit from "
            "scalesim.distance.Source, as in sources=[Learned()]"
        )
    with reading("a source's name", ConfigError):
        name, ledger = source.name, Ledger(judges_itself=bool(source.judges_itself))
    if not isinstance(name, str) or not name:
        raise ConfigError(f"a source is named {shown(name)}; give it a string as name=")
    return Voice(name, ledger, source)


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
