"""The text of one reply as its tokens come, cut before the first stop string.

The engine makes one stream for each sampled sequence. A stream knows text only: stop token ids,
lengths and end-of-sequence ids are the scheduler's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from scalesim.model.text.tokenizer import Tokenizer


class StopFinder:
    """Finds the first complete stop string in a growing text (Aho and Corasick, 1975).

    If several are complete at the same character, the longest counts, so that the result does not
    depend on how the text is cut into pieces. Each character of the text is read once.
    """

    def __init__(self, stop: Iterable[str]) -> None:
        self._next: list[dict[str, int]] = [{}]  # by state: the state that a character leads to
        self._depth = [0]  # by state: length of the stop string's beginning that the text ends with
        self._found = [0]  # by state: length of the longest stop string that ends here
        for string in stop:
            self._add(string)
        self._fall = self._fallbacks()
        self._state = 0
        self._held = ""

    def feed(self, text: str) -> tuple[str, str | None]:
        """Add text. Returns the text that is safe to show, and the stop string that was found or
        None. After a stop string was found, nothing more may be fed.
        """
        state, text, num_seen = self._state, self._held + text, len(self._held)
        for end in range(num_seen + 1, len(text) + 1):
            state = self._step(state, text[end - 1])
            if length := self._found[state]:
                self._held = ""
                return text[: end - length], text[end - length : end]
        self._state = state
        safe_len = len(text) - self._depth[state]
        self._held = text[safe_len:]
        return text[:safe_len], None

    def flush(self) -> str:
        """The text that was held back because a stop string could have begun in it."""
        text, self._held = self._held, ""
        return text

    def _add(self, string: str) -> None:
        state = 0
        for depth, char in enumerate(string, start=1):
            if char not in self._next[state]:
                self._next[state][char] = len(self._next)
                self._next.append({})
                self._depth.append(depth)
                self._found.append(0)
            state = self._next[state][char]
        self._found[state] = len(string)

    def _fallbacks(self) -> list[int]:
        """By state: the longest proper suffix of its string that also begins a stop string."""
        self._fall = [0] * len(self._next)
        queue = deque(self._next[0].values())
        while queue:  # by depth, so that every shorter state is ready
            state = queue.popleft()
            for char, child in self._next[state].items():
                self._fall[child] = self._step(self._fall[state], char)
                queue.append(child)
            self._found[state] = self._found[state] or self._found[self._fall[state]]
        return self._fall

    def _step(self, state: int, char: str) -> int:
        while state and char not in self._next[state]:
            state = self._fall[state]
        return self._next[state].get(char, 0)


class TokenStream:
    """The text of a reply, from token ids pushed one at a time. A push costs in proportion to the
    new text.

    Text is shown as soon as it is certain: never half a character, never a possible beginning of a
    stop string. At the end ``text`` equals ``tokenizer.decode`` of all ids, cut before the first
    complete stop string (the longest, if several end together).
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._detokenizer = tokenizer.detokenizer()
        self._finder = StopFinder(stop) if stop else None
        self._shown: list[str] = []
        self.stop_string: str | None = None
        self.finished = False

    @property
    def text(self) -> str:
        """All text shown so far."""
        return "".join(self._shown)

    def push(self, token_id: int) -> str:
        """Add one id. Returns the text that became certain; '' once the stream is finished."""
        return "" if self.finished else self._show(self._detokenizer.push(token_id))

    def finish(self) -> str:
        """End the stream. Returns the text that was held back, cut before a stop string."""
        if self.finished:
            return ""
        tail = self._show(self._detokenizer.flush())
        if self._finder and not self.finished:
            text = self._finder.flush()
            self._shown.append(text)
            tail += text
        self.finished = True
        return tail

    def _show(self, text: str) -> str:
        if self._finder and text:
            text, self.stop_string = self._finder.feed(text)
            self.finished = self.stop_string is not None
        if text:
            self._shown.append(text)
        return text
