"""The demo's progress display: live bars on a terminal, elsewhere a few lines."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from scalesim.cli.play import PlayScore

_LINES = 4  # where there are no bars


class Screen(Progress):
    """A bar for each policy, and below them the world's news. As a context manager, it restores the
    terminal in any case. ``warms_up`` and ``played`` report the progress of a policy."""

    def __init__(self, console: Console, policies: tuple[str, ...], ticks: int) -> None:
        self._news, self._ticks = "", ticks
        super().__init__(
            TextColumn("{task.description:<14}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            console=console,
            disable=not console.is_terminal,
            refresh_per_second=4,  # slow: each refresh takes the interpreter away from the engine
        )
        self._bars = {
            name: self.add_task(name, total=ticks, state="[dim]waits") for name in policies
        }
        self._num_played, self._num_lines = 0, 0

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self._news:
            yield Text(self._news, style="dim", no_wrap=True, overflow="ellipsis")

    def stop(self) -> None:
        """Stop, and leave the bars without news on the terminal."""
        self._news = ""
        super().stop()

    def warms_up(self, policy: str) -> None:
        self.update(self._bars[policy], state="everyone speaks once, to warm up")
        if self.disable:
            self.console.print(f"warm-up: everyone speaks once under {policy}", highlight=False)

    def played(self, score: PlayScore, news: str) -> None:
        """Report one more tick of a policy: its score so far, and the world's news."""
        rates = f"hits {score.hits:4.0%}   {score.call_cpu_s * 1e3:.0f} CPU ms a call"
        self.update(self._bars[score.policy], completed=score.ticks, state=rates)
        self._news = f"tick {score.ticks}: {news}"
        self._num_played += 1
        due = score.ticks * _LINES // self._ticks
        if self.disable and self._num_played % len(self._bars) == 0 and due > self._num_lines:
            self._num_lines = due
            line = f"tick {score.ticks} of {self._ticks}: {news}"
            self.console.print(line, highlight=False, markup=False)
