"""What the demo shows while it runs: live bars on a terminal, a line a policy elsewhere."""

from __future__ import annotations

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from scalesim.cli.play import Score


class Screen:
    """A ``Watcher``, and a context manager that gives the terminal back however it is left."""

    def __init__(self, console: Console, policies: tuple[str, ...], steps: int) -> None:
        self._console, self._steps = console, steps
        self._bars = Progress(
            TextColumn("{task.description:<14}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {
            name: self._bars.add_task(name, total=steps, state="[dim]waits") for name in policies
        }
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

    def begin(self, policy: str) -> None:
        self._bars.update(self._tasks[policy], state="everyone speaks once, to warm up")

    def step(self, score: Score, news: str) -> None:
        rates = f"{score.turns_per_s:5.1f} turns/s   hits {score.hits:4.0%}"
        self._bars.update(self._tasks[score.policy], completed=score.steps, state=rates)
        if self._live is not None:
            self._live.update(self._view(f"step {score.steps}: {news}"))
        elif score.steps == self._steps:
            line = f"{score.policy:<14} {score.steps}/{self._steps} steps {rates}"
            self._console.print(line, highlight=False)

    def _view(self, news: str) -> Group:
        return Group(self._bars, Text(news, style="dim", no_wrap=True, overflow="ellipsis"))
