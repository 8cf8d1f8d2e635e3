"""What the demo shows while it runs: live bars on a terminal, elsewhere a line now and then."""

from __future__ import annotations

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from scalesim.cli.play import PlayScore

_LINES = 4  # where there are no bars


class Screen:
    """A context manager that gives the terminal back however it is left. ``warms_up`` and
    ``played`` tell it how far a policy is."""

    def __init__(self, console: Console, policies: tuple[str, ...], ticks: int) -> None:
        self._console, self._ticks = console, ticks
        self._bars = Progress(
            TextColumn("{task.description:<14}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {
            name: self._bars.add_task(name, total=ticks, state="[dim]waits") for name in policies
        }
        self._played, self._lines = 0, 0
        self._live: Live | None = None
        if console.is_terminal:
            # slow: each refresh takes the interpreter away from the engine
            self._live = Live(self._view(""), console=console, refresh_per_second=4)

    def __enter__(self) -> Screen:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.update(self._bars)  # the last view stays: bars without news
            self._live.stop()

    def warms_up(self, policy: str) -> None:
        self._bars.update(self._tasks[policy], state="everyone speaks once, to warm up")
        if self._live is None:
            self._console.print(f"warm-up: everyone speaks once under {policy}", highlight=False)

    def played(self, score: PlayScore, news: str) -> None:
        """A tick more under one policy: its score so far, and what happened in the world."""
        rates = f"hits {score.hits:4.0%}   {score.call_cpu_s * 1e3:.0f} CPU ms a call"
        self._bars.update(self._tasks[score.policy], completed=score.ticks, state=rates)
        self._played += 1
        due = score.ticks * _LINES // self._ticks
        if self._live is not None:
            self._live.update(self._view(f"tick {score.ticks}: {news}"))
        elif self._played % len(self._tasks) == 0 and due > self._lines:
            self._lines = due
            line = f"tick {score.ticks} of {self._ticks}: {news}"
            self._console.print(line, highlight=False, markup=False)

    def _view(self, news: str) -> Group:
        return Group(self._bars, Text(news, style="dim", no_wrap=True, overflow="ellipsis"))
