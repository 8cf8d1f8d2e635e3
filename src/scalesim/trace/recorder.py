"""The recorder of traces: an engine's calls and hints, with their times, lengths and shared text.

A trace holds no text, only names of contents. A prompt that begins like an earlier prompt of any
agent, or continues its own agent's last call, names the same contents for the common beginning;
what follows gets a new name. Sharing between agents is detected at whole blocks, within an agent at
single tokens. The engine's loop calls the recorder, on its thread.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial, wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, cast

import numpy as np
import xxhash

from scalesim.core import AgentId, Int32s
from scalesim.errors import ConfigError
from scalesim.foreign import Foreign, report, words_of
from scalesim.trace.file import TraceWriter
from scalesim.trace.trace import Hint, TraceCall, TracePiece, common_length


@dataclass(frozen=True, slots=True)
class _Said:
    """Tokens ``[n]``, and the pieces of the trace that name them."""

    tokens: Int32s
    pieces: tuple[TracePiece, ...]


@dataclass(slots=True)
class _Line:
    """A line to be written, by ``write``; ``None`` writes nothing. The line of a call is open until
    the call ends. Lines after an open line wait, so that the file keeps the order of arrival."""

    tick: float
    write: Callable[[], None] | None = None
    is_open: bool = False


_log = logging.getLogger(__name__)
_P = ParamSpec("_P")


def gives_up(
    write: Callable[Concatenate[Recorder, _P], None],
) -> Callable[Concatenate[Recorder, _P], None]:
    """A decorator that ends the recording for good if ``write`` fails: a full disk costs the trace,
    not the run."""

    @wraps(write)
    def tried(self: Recorder, *args: _P.args, **kwargs: _P.kwargs) -> None:
        if self.error is None:
            with Foreign() as raised:
                write(self, *args, **kwargs)
            if raised.error is not None:
                self.error = raised.error
                report(_log, "the trace %s ends here: %s", self.path, words_of(raised.error))

    return cast("Callable[Concatenate[Recorder, _P], None]", tried)


def check_new(path: Path) -> None:
    """Raise ``ConfigError`` unless a new file can be made at ``path``: a trace overwrites
    nothing."""
    if os.path.lexists(path):
        raise ConfigError(f"record={str(path)!r} exists; delete it, or give another name")
    if not path.parent.is_dir():
        raise ConfigError(f"record={str(path)!r}: there is no folder {str(path.parent)!r}")
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"record={str(path)!r}: nothing may be written to {str(path.parent)!r}")


class Recorder:
    """Writes a trace to ``path``, calls and hints in the order of their arrival.

    ``close`` ends the trace, without the calls that are still open. The recorder keeps all tokens,
    to recognise them in later prompts. ``error`` is the error that ended the recording early, if
    one did. Raises ``ConfigError`` if the file cannot be made.
    """

    def __init__(self, path: Path, block_size: int) -> None:
        self.path = path
        self.error: BaseException | None = None
        check_new(path)
        try:
            self._file = path.open("x", encoding="utf-8")
        except OSError as cause:
            raise ConfigError(f"record={str(path)!r} cannot be written: {cause.strerror}") from None
        self._writer = TraceWriter(self._file)
        self._block_size = block_size
        self._num_contents = 0
        self._lines: deque[_Line] = deque()
        # by call: its line, its time, its prompt's tokens, and the call but for its output
        self._begun: dict[int, tuple[_Line, float, Int32s, TraceCall]] = {}
        # by agent: its last tick, and in that its last round and number of open calls
        self._rounds: dict[AgentId | None, tuple[float, int, int]] = {}
        self._last: dict[AgentId | None, _Said] = {}
        self._blocks: dict[int, _Said] = {}  # by the hash of all tokens up to a block's end

    @gives_up
    def begins(
        self,
        call: int,
        agent: AgentId | None,
        tick: float,
        at_s: float,
        tokens: Int32s,
        more_calls: int | None = None,
    ) -> None:
        """Note a request that was accepted in ``tick``, at ``at_s`` seconds from the recording's
        beginning, with the prompt ``tokens`` ``[n]``; ``more_calls`` were said to follow it.
        ``call`` identifies it until ``ends``."""
        pieces = self._known(agent, tokens)
        num_new = len(tokens) - sum(piece.length for piece in pieces)
        if num_new:
            pieces = (*pieces, TracePiece(self._name(), num_new))
        line = _Line(tick, is_open=True)
        self._lines.append(line)
        traced = TraceCall(
            agent, pieces, TracePiece("", 0), self._round(agent, tick), more_calls=more_calls
        )
        self._begun[call] = (line, at_s, tokens, traced)
        self._remember(_Said(tokens, pieces))

    @gives_up
    def ends(self, call: int, output: Int32s) -> None:
        """Note that a request ended with the tokens ``output`` ``[n]``. A request without output
        leaves no line."""
        if (begun := self._begun.pop(call, None)) is None:
            return  # of a forked world: the trace is of one
        line, at_s, tokens, traced = begun
        last = self._rounds.get(traced.agent)  # None if the agent was forgotten
        if last is not None and last[0] == line.tick:
            self._rounds[traced.agent] = (last[0], last[1], last[2] - 1)
        line.is_open = False
        if len(output):
            said = TracePiece(self._name(), len(output))
            whole = _Said(np.concatenate([tokens, output]), (*traced.prompt, said))
            ended = replace(traced, output=said)
            line.write = partial(self._writer.call, line.tick, ended, at_s)
            if last is not None:
                self._last[traced.agent] = whole
            self._remember(whole)
        self._flush()

    @gives_up
    def forget(self, agents: Iterable[AgentId]) -> None:
        """Forget ``agents``, which are gone. A trace has no line for that: calls under such an id
        later are those of a new agent. Texts are kept, to recognise them."""
        for agent in agents:
            self._rounds.pop(agent, None)
            self._last.pop(agent, None)

    @gives_up
    def expects(self, agent: AgentId, tick: float, time: float) -> None:
        """Note a hint, in ``tick``: ``agent`` is expected at ``time``."""
        self._lines.append(_Line(tick, partial(self._writer.hint, tick, Hint(agent, time))))
        self._flush()

    @gives_up
    def ticks(self, tick: float) -> None:
        """Note that the clock moved to ``tick``."""
        self._lines.append(_Line(tick, partial(self._writer.tick, tick)))
        self._flush()

    def after_fork(self) -> None:
        """Drop the file in a forked child: the parent writes what the file's buffer holds."""
        if self._file.closed:
            return
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._file.fileno())
        os.close(null)

    def close(self) -> None:
        """End the trace, without the calls that are still open."""
        self._lines = deque(line for line in self._lines if not line.is_open)
        with Foreign():  # the disk may be full: flushing the file's buffer fails as well
            if self.error is None:
                self._flush()
        with Foreign():
            self._file.close()

    def _flush(self) -> None:
        while self._lines and not self._lines[0].is_open:
            line = self._lines.popleft()
            if line.write is not None:
                line.write()

    def _round(self, agent: AgentId | None, tick: float) -> int:
        """The round of an agent's new call in ``tick``: the current round while one of its calls is
        open, else the next one."""
        newest_tick, newest, num_open = self._rounds.get(agent, (tick, -1, 0))
        if newest_tick != tick:
            newest, num_open = -1, 0
        if num_open == 0:
            newest += 1
        self._rounds[agent] = (tick, newest, num_open + 1)
        return newest

    # -- shared text --------------------------------------------------------------------------

    def _known(self, agent: AgentId | None, tokens: Int32s) -> tuple[TracePiece, ...]:
        """The pieces of the longest beginning of ``tokens`` that was recorded before."""
        last, length = self._last.get(agent), 0
        pieces: tuple[TracePiece, ...] = ()
        if last is not None:
            length = common_length(last.tokens, tokens)
            pieces = beginning(last.pieces, length)
        for end, digest in reversed(self._digests(tokens)):
            if end <= length:
                break
            said = self._blocks.get(digest)
            if said is not None and np.array_equal(said.tokens[:end], tokens[:end]):
                return beginning(said.pieces, end)
        return pieces

    def _remember(self, said: _Said) -> None:
        for _, digest in self._digests(said.tokens):
            self._blocks.setdefault(digest, said)

    def _digests(self, tokens: Int32s) -> list[tuple[int, int]]:
        """For each whole block: its end, and the hash of all tokens up to there."""
        state, size = xxhash.xxh3_64(), self._block_size
        found = []
        for end in range(size, len(tokens) + 1, size):
            state.update(tokens[end - size : end].tobytes())
            found.append((end, state.intdigest()))
        return found

    def _name(self) -> int:
        self._num_contents += 1
        return self._num_contents


def beginning(pieces: tuple[TracePiece, ...], length: int) -> tuple[TracePiece, ...]:
    """The pieces of the first ``length`` tokens of ``pieces``."""
    found = []
    for piece in pieces:
        if length <= 0:
            break
        found.append(piece._replace(length=min(piece.length, length)))
        length -= piece.length
    return tuple(found)
