"""A voice: a source of hints as an engine keeps it, with the ledger of its predictions."""

from __future__ import annotations

from dataclasses import dataclass, field

from scalesim.checks import instance, reading, shown, text
from scalesim.core import AgentId
from scalesim.distance.calendar import Calendar
from scalesim.distance.estimates import Listener, Source
from scalesim.distance.ledger import Ledger
from scalesim.distance.roster import Roster
from scalesim.distance.state import PlainState
from scalesim.errors import ConfigError
from scalesim.foreign import Foreign


@dataclass(slots=True)
class Voice:
    """A source and its predictions. ``source`` is ``None`` for the users' own hints.

    ``strangers`` are the agents that the source speaks of and that do not exist so far, with their
    predicted times in ticks.
    """

    name: str
    ledger: Ledger
    source: Source | None = None
    failed: str = ""  # the error that it raised, after which it is not asked again
    strangers: dict[AgentId, float] = field(default_factory=dict)
    strangers_due: Calendar = field(default_factory=Calendar)
    misnamed: dict[AgentId, None] = field(default_factory=dict)  # the last strangers that expired

    @property
    def is_heard(self) -> bool:
        """Whether an open engine listens to the source."""
        listener = None if self.source is None else self.source.heard_by
        return listener is not None and not listener.is_closed

    def state(self) -> PlainState:
        """The predictions, the strangers, and what the source has learned."""
        with Foreign() as raised:
            learned = None if self.source is None else self.source.state()
        return {
            "name": self.name,
            "ledger": self.ledger.state(),
            "strangers": [[agent, time] for agent, time in self.strangers.items()],
            "misnamed": list(self.misnamed),
            "source": learned if raised.error is None else None,
        }

    def restore(self, state: PlainState, now: float, roster: Roster) -> bool:
        """Have what ``state`` gave, at ``now``. Returns whether the source goes on from what it had
        learned; one that raises is not asked again."""
        self.ledger.restore(state["ledger"], now)
        self.strangers = dict(state["strangers"])
        self.misnamed = dict.fromkeys(state["misnamed"])
        for agent, time in self.strangers.items():
            self.strangers_due.put_one(roster.row(agent), time, now)
        if self.source is None or state["source"] is None:
            return True
        with Foreign() as raised:
            self.source.restore(state["source"], now)
        if raised.error is not None:
            self.source, self.failed = None, shown(raised.error)
        return raised.error is None

    def heard_by(self, listener: Listener) -> None:
        """Make ``listener`` the one that the source tells of news."""
        if self.source is not None:
            self.source.heard_by = listener


def voice_of(source: object) -> Voice:
    """A voice for ``source``. Raises ``ConfigError`` if that is no ``Source`` or has no name."""
    instance("source", source, Source, "Learned(), or a class of your own", ConfigError)
    assert isinstance(source, Source)
    with reading("a source's name", ConfigError):
        name = text("a source's name", source.name, ConfigError, empty=False)
        return Voice(name, Ledger(judges_itself=bool(source.judges_itself)), source)


def silence_of(voice: Voice) -> str:
    """Why ``voice`` is not heard; empty if it may be."""
    if voice.failed:
        return f"it failed and is not asked again: {voice.failed}"
    if voice.ledger.score.muted:
        return f"its predictions seldom come true (trust {voice.ledger.score.trust:.2f})"
    if voice.source is None:
        return ""
    with Foreign() as raised:
        return str(voice.source.why_silent())
    return f"it cannot say why: {shown(raised.error)}"
