"""The contract of a kind of state, tried rule by rule on random values.

What a kind says is what memory goes by: a size that is too small would lose bytes, a cost that is
too low would start a read too late, an identity that two contents share would give one agent the
other's state. Each is compared here with what the kind does.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import numpy as np
import torch

from scalesim.errors import StateError
from scalesim.memory.kinds import Packed, StateKind, digest_of, packed
from scalesim.testing.contracts import BrokenRuleError, telling

KIND_RULES = {
    "name": "`name` is a text that is not empty",
    "claims": "`form` is None for values of other kinds, and nothing else for its own",
    "plain": "forms and origins are plain values",
    "size": "`num_bytes` tells what `pack` gives",
    "stable": "a value has the same form, bytes and identity each time",
    "view": "a view has the form, bytes and origin of the value that was packed",
    "identity": "values of other bytes or forms have another identity",
    "reread": "`reread` gives the content that there was, each time",
    "cost": "`reread_s` is None, or within four times of what a reread takes and 0.05 s",
}
PAGE_BYTES = 4096
MAX_RATIO, SLACK_S = 4.0, 0.05
"""By how much the cost that a kind tells may be off: a factor, and seconds that a busy machine may
take for anything."""
TRIES = 3  # of a reread: the quickest counts
RULE_OF = {
    "form() is": "claims",
    "num_bytes()": "size",
    "pack()": "size",
    "reread()": "reread",
    "identity()": "identity",
}
"""The rule that an error of ``packed`` tells of, by words in it; all others tell of ``plain``."""


def try_kind(
    kind: StateKind,
    seed: int,
    steps: int = 20,
    *,
    sample: Callable[[random.Random], Any] | None = None,
    time_s: Callable[[], float] = time.perf_counter,
) -> int:
    """Try ``steps`` random values of ``kind``, drawn from ``seed``: those that ``sample`` gives, or
    the kind's own. ``time_s``: monotonic seconds, for the cost of reading again. Returns how many
    had an origin and were read again. Raises ``BrokenRuleError``."""
    trial = KindTrial(kind, sample or kind.sample, time_s)
    rng = random.Random(seed)
    with telling(trial.asked):
        trial.begin(rng)
        for _ in range(steps):
            trial.step(rng)
    return trial.num_reread


_ARRAYS = {torch.Tensor, np.ndarray}


class _Other:
    """A value of no kind."""

    def __repr__(self) -> str:
        return "an object of another class"


class KindTrial:
    """A kind, and what its values were found to be so far."""

    def __init__(
        self,
        kind: StateKind,
        sample: Callable[[random.Random], Any],
        time_s: Callable[[], float],
    ) -> None:
        self.asked: list[str] = [f"{type(kind).__name__}"]
        self._kind, self._sample, self._time_s = kind, sample, time_s
        self._known: dict[bytes, tuple[Any, bytes]] = {}  # form and bytes by identity
        self._forms: dict[int, Any] = {}  # the latest, by the bytes of its values
        self.num_reread = 0

    def begin(self, rng: random.Random) -> None:
        """Try what is asked before there are values."""
        name = getattr(self._kind, "name", None)
        if not isinstance(name, str) or not name:
            self._broken("name", "kind.name", f"it is {name!r}")
        own = self._ask("sample(rng)", self._sample, rng)
        for other in (_Other(), None, "text", torch.zeros(2), np.zeros(2)):
            if isinstance(own, type(other)) or {type(own), type(other)} <= _ARRAYS:
                continue
            if (form := self._ask(f"form({other!r:.40})", self._kind.form, other)) is not None:
                self._broken("claims", self.asked[-1], f"it gave {form!r:.80}")

    def step(self, rng: random.Random) -> None:
        """Try one value."""
        kind = self._kind
        value = self._ask("sample(rng)", self._sample, rng)
        if self._ask("form(value)", kind.form, value) is None:
            self._broken("claims", "form(value), of what sample() gave", "it gave None")
        first, again = self._pack("value", value), self._pack("value", value)
        if not _same(first, again):
            self._broken("stable", "pack(value) twice", _difference(first, again))
        data = first.rows.reshape(-1)[: first.form.num_bytes]
        viewed = self._ask(
            "view(form, data, origin)", kind.view, first.form.form,
            torch.from_numpy(data.copy()), first.form.origin,
        )  # fmt: skip
        back = self._pack("view", viewed)
        if not _same(first, back) or first.form.origin != back.form.origin:
            self._broken("view", "pack(view(form, data, origin))", _difference(first, back))
        self._check_identity(first, rng)
        if first.form.origin is not None:
            self._check_reread(first)

    def _pack(self, what: str, value: Any) -> Packed:
        return self._told(f"pack({what})", packed, self._kind, value, PAGE_BYTES)  # type: ignore[no-any-return]

    def _told(self, asked: str, function: Callable[..., Any], *given: Any) -> Any:
        try:
            return self._ask(asked, function, *given)
        except StateError as error:
            said = f"{error}"
            rules = [rule for words, rule in RULE_OF.items() if words in said]
            self._broken((*rules, "plain")[0], asked, said)

    def _check_identity(self, value: Packed, rng: random.Random) -> None:
        asked = "identity(form, data)"
        digest = self._told(asked, digest_of, self._kind, value)
        content = value.form.form, value.rows.tobytes()
        if self._known.setdefault(digest, content) != content:
            self._broken("identity", f"{asked} of two contents", "it is the same")
        for how, other in self._near(value, rng):
            try:
                is_same = digest_of(self._kind, other) == digest
            except Exception:  # these may be the bytes of no value
                continue
            if is_same:
                self._broken("identity", f"{asked} with {how}", "it is the same")
        self._forms[value.form.num_bytes] = value.form.form

    def _near(self, value: Packed, rng: random.Random) -> Iterator[tuple[str, Packed]]:
        """Other contents of the size of ``value``, and how they differ from it."""
        count = value.form.num_bytes
        other = self._forms.get(count, value.form.form)
        if other != value.form.form:
            yield "another form", value._replace(form=value.form._replace(form=other))
        for at in (0, count - 1, rng.randrange(count)) if count else ():
            rows = value.rows.copy()
            rows.reshape(-1)[at] ^= 1
            yield f"byte {at} of {count} changed", value._replace(rows=rows)
        rows = value.rows.copy()
        rows.reshape(-1)[:count] = rows.reshape(-1)[:count][::-1].copy()
        if (rows != value.rows).any():
            yield "its bytes in reverse", value._replace(rows=rows)

    def _check_reread(self, value: Packed) -> None:
        kind, origin = self._kind, value.form.origin
        self.num_reread += 1
        told_s = self._ask(f"reread_s({origin!r:.60})", kind.reread_s, origin)
        taken_s = math.inf
        for _ in range(TRIES):
            start_s = self._time_s()
            found = self._pack("reread(origin)", self._ask("reread(origin)", kind.reread, origin))
            taken_s = min(taken_s, self._time_s() - start_s)
            if not _same(value, found):
                self._broken("reread", f"reread({origin!r:.60})", _difference(value, found))
        if told_s is None:
            return
        asked = f"reread_s({origin!r:.60})"
        if not isinstance(told_s, (int, float)) or not 0 <= told_s < math.inf:
            self._broken("cost", asked, f"it gave {told_s!r}: give seconds")
        low_s, high_s = sorted((float(told_s), taken_s))
        if high_s > MAX_RATIO * low_s + SLACK_S:
            self._broken("cost", asked, f"it told {told_s:.3g} s, and it took {taken_s:.3g} s")

    def _ask(self, asked: str, function: Callable[..., Any], *given: Any) -> Any:
        self.asked.append(asked)
        return function(*given)

    def _broken(self, rule: str, asked: str, given: str) -> NoReturn:
        raise BrokenRuleError(rule, KIND_RULES[rule], asked, given)


def _same(one: Packed, other: Packed) -> bool:
    """Whether both are one content."""
    forms = one.form.form == other.form.form and one.form.num_bytes == other.form.num_bytes
    return forms and np.array_equal(one.rows, other.rows)


def _difference(one: Packed, other: Packed) -> str:
    if one.form.form != other.form.form:
        return f"forms {one.form.form!r:.60} and {other.form.form!r:.60}"
    if one.rows.shape != other.rows.shape:
        return f"{one.form.num_bytes} and {other.form.num_bytes} bytes"
    if (count := int((one.rows != other.rows).sum())) > 0:
        return f"{count} of {one.form.num_bytes} bytes differ"
    return f"origins {one.form.origin!r:.60} and {other.form.origin!r:.60}"
