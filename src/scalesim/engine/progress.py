"""How far a batch is, for people: a bar of rich or tqdm, or a function of the caller's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

from scalesim.checks import refuse, text
from scalesim.errors import ConfigError

Progress: TypeAlias = 'bool | Literal["rich", "tqdm"] | Callable[[int, int], None]'
Show = Callable[[int], None]


@contextmanager
def shown(progress: Progress, total: int) -> Iterator[Show | None]:
    """What to tell how many of ``total`` have ended; ``None`` where nobody wants to know.

    ``True`` is rich, which knows terminals and notebooks; ``"tqdm"`` is ``tqdm.auto``. Raises
    ``ConfigError`` without tqdm, ``RequestError`` for what is neither.
    """
    named = text("progress", progress) if isinstance(progress, str) else ""
    if progress is False:
        yield None
    elif callable(progress):
        yield lambda done: progress(done, total)
    elif progress is True or named == "rich":
        with _rich(total) as show:
            yield show
    elif named == "tqdm":
        with _tqdm(total) as show:
            yield show
    else:
        rule = "must be True, False, 'rich', 'tqdm' or a function of (done, total)"
        refuse("progress", progress, rule)


@contextmanager
def _rich(total: int) -> Iterator[Show]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def _tqdm(total: int) -> Iterator[Show]:
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ConfigError("progress='tqdm' needs tqdm: pip install tqdm") from error
    with tqdm(total=total, unit="call") as bar:

        def show(done: int) -> None:
            bar.update(done - bar.n)

        yield show
