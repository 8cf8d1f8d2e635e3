"""The demo's display: live on a terminal, elsewhere lines; and as a picture of its end."""

from __future__ import annotations

from collections import deque
from types import TracebackType

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from scalesim.cli.play import Play, PlayScore, Said
from scalesim.cli.scenery import LEGEND, draw_map, strip
from scalesim.village.actions import read_action

_LINES_A_TICK = 2  # where there is no terminal
_TALK, _TALK_BELOW = 9, 3  # texts beside the map; below it on a narrow terminal
_CELLS, _CELLS_BELOW = 64, 22  # of a strip
_MAP_WIDTH, _TALK_WIDTH, _HEIGHT = 70, 49, 20
WIDE = _MAP_WIDTH + _TALK_WIDTH
"""Columns from which on the talk is beside the map."""


class Screen:
    """The village of the first play, and a row for each policy. As a context manager, it restores
    the terminal in any case. ``opens`` and ``played`` report progress; they redraw only if there is
    a terminal, and never while an engine computes."""

    def __init__(self, console: Console, plays: list[Play], ticks: int) -> None:
        self._console, self._plays, self._ticks = console, plays, ticks
        self._scores: dict[str, PlayScore | None] = {}  # None: its people begin their day
        self._talk: deque[Said] = deque(maxlen=_TALK)
        self._seen, self._lines, self._tick = 0, 0, -1
        self._live = Live(console=console, auto_refresh=False, transient=False)

    def __enter__(self) -> Screen:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def opens(self, play: Play) -> None:
        """``play`` asks people for their first action."""
        self._scores[play.policy] = None
        self._update(play)

    def played(self, play: Play) -> None:
        """``play`` has played a round."""
        self._scores[play.policy] = play.score
        self._update(play)

    def _update(self, play: Play) -> None:
        if play is self._plays[0]:
            new, self._seen = play.said[self._seen :], len(play.said)
            self._talk.extend(new)
            if not self._live.is_started:
                self._print(new)
        if self._live.is_started:
            self._live.update(self.picture(self._console.width), refresh=True)

    def _print(self, new: list[Said]) -> None:
        for said in new:
            if said.tick != self._tick:
                self._tick, self._lines = said.tick, 0
                village = self._plays[0].village
                self._console.print(
                    f"tick {said.tick} of {self._ticks}, {village.moment}", highlight=False
                )
            if self._lines < _LINES_A_TICK:
                self._lines += 1
                self._console.print(Text("  ") + told(said), soft_wrap=False)

    def picture(self, width: int) -> RenderableType:
        """The village, and where each policy has the state of its people, on ``width`` columns."""
        is_wide = width >= WIDE
        village = self._plays[0].village
        names = {said.who for said in self._talk}
        speaking = {index for index, one in enumerate(village.people) if one.villager.name in names}
        title = f"{village.moment} · tick {min(village.now, self._ticks)} of {self._ticks}"
        scene = Panel(draw_map(village, speaking), title=title, width=_MAP_WIDTH, height=_HEIGHT)
        lines = [told(said) for said in self._talk]
        table = self._table(_CELLS if is_wide else _CELLS_BELOW)
        if not is_wide:
            for line in lines:
                line.truncate(_MAP_WIDTH, overflow="ellipsis")
            return Group(scene, *lines[-_TALK_BELOW:], table, LEGEND)
        talk = Panel(
            Text("\n").join(lines), title="what they say", width=_TALK_WIDTH, height=_HEIGHT
        )
        return Group(Columns([scene, talk], padding=0), table, LEGEND)

    def _table(self, most_cells: int) -> Table:
        table = Table(box=None, header_style="dim", padding=(0, 1))
        for name in ("", "agents", "hits", "waited", "MB in", "MB out", "calls/s"):
            table.add_column(name, justify="left" if name in ("", "agents") else "right")
        for play in self._plays:
            if play.policy not in self._scores:
                continue
            score = self._scores[play.policy]
            if score is None:
                table.add_row(play.policy, Text("all begin their day", style="dim"))
                continue
            moved = score.page_bytes / 1e6
            table.add_row(
                play.policy,
                strip(play.states.values(), most_cells),
                f"{score.hits:.0%}",
                f"{score.waited:.0%}",
                f"{score.memory.loaded_pages * moved:.0f}",
                f"{score.memory.saved_pages * moved:.0f}",
                f"{score.calls_per_s:.1f}",
            )
        return table


def told(said: Said) -> Text:
    """A text as a line: an action in words, anything else as it is."""
    action = read_action(said.text)
    if action is None:
        return Text.assemble((f"{said.who}: ", "bold"), said.text)
    where = f"goes to the {action.place.name} to {action.task}"
    return Text.assemble((said.who, "bold"), f" {where}")
