"""Requests' lives: agents who ask, repeat, fork and abort, on a scheduler's world; every answer is
compared with what its tokens alone say.

Every operation takes small integers, so that a state machine and a random walk can drive the same
code. The oracle is ``expected_text``: one agent alone, with unlimited memory.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from scalesim.errors import AdapterError, NumericalError
from scalesim.memory.lease import AttachmentSpec
from scalesim.memory.links.link import LinkError
from scalesim.scheduler.scheduler import MAX_ATTACHMENT_FAILURES
from scalesim.scheduler.sequence import Phase, Sequence
from scalesim.testing.bed import OURS, Factories
from tests.machines.scheduler_world import VOCAB, SchedulerWorld, Setting, expected
from tests.machines.schedules import Fair, Schedule

AGENTS = 6
MAX_OPEN = 24
KINDS = ("own", "own", "own", "extend", "extend", "repeat", "share", "fresh")


@dataclass
class RequestWorld:
    """``adapters``: so many names of adapters come and go, of up to an eighth of the pool each.
    ``bad``: so many of the vocabulary's tokens come from a step that is not finite."""

    setting: Setting
    factories: Factories = OURS
    schedule: Schedule | None = None
    adapters: int = 0
    bad: int = 0
    open: list[tuple[Sequence, list[int]]] = field(default_factory=list)  # with its prompt
    history: list[list[int]] = field(default_factory=list)  # tokens
    loaded: dict[int, AttachmentSpec] = field(default_factory=dict)  # by name
    removed: set[bytes] = field(default_factory=set)  # digests
    num_ended: int = 0
    num_cancelled: dict[str, int] = field(default_factory=dict)  # by the phase it was in

    def __post_init__(self) -> None:
        self.rng = random.Random(self.setting.seed)
        bad = frozenset(self.rng.sample(range(VOCAB), self.bad))
        self.world = SchedulerWorld(self.setting, self.factories, self.schedule, bad)
        self.max_len = self.world.scheduler.max_len
        private = max(1, self.max_len // 3)
        self.prefixes = [self._tokens(private) for _ in range(AGENTS)]

    # -- what requests do ---------------------------------------------------------------------

    def ask(self, agent: int, kind: str, pick: int, length: int, output: int) -> None:
        """A request, related to an earlier one's tokens or not."""
        if len(self.open) == MAX_OPEN:
            return
        prompt = self._prompt(agent, kind, pick, length)
        prompt = prompt[: self.max_len - 1]
        use = None
        if self.loaded and pick % 4:
            names = sorted(self.loaded)
            use = self.loaded[names[agent % len(names)]]
            self.world.memory.bind_adapter(agent, use.digest)
            if pick % 3 == 0:
                use = use._replace(start=pick % len(prompt))
        sequence = self.world.add(
            agent if pick % 11 else None,
            prompt,
            min(1 + output, self.max_len - len(prompt)),
            temperature=float(pick % 2),
            adapter=use,
        )
        self.open.append((sequence, prompt))

    def cancel(self, pick: int) -> None:
        """One ends now: of those that load, if ``pick`` says so, or that hold pages, or any."""
        if self.open:
            sequences = [sequence for sequence, _ in self.open]
            loading = [each for each in sequences if each.phase is Phase.LOADING]
            held = [each for each in sequences if each.lease is not None]
            among = ([loading, held, held, sequences][pick % 4]) or held or sequences
            sequence = among[pick // 4 % len(among)]
            if sequence.phase is not Phase.FINISHED:
                phase = sequence.phase.value
                self.num_cancelled[phase] = self.num_cancelled.get(phase, 0) + 1
            self.world.scheduler.end(sequence, "cancelled", None)
            if pick // 4 % 2:  # as a caller may: twice, and after the end
                self.world.scheduler.end(sequence, "cancelled", None)
            self._settle()

    def iterate(self, count: int) -> None:
        for _ in range(count):
            self.world.iterate()
        self._settle()

    def happen(self, pick: int) -> None:
        """Something happens that the host did not wait for."""
        if events := self.world.events():
            self.world.do(events[pick % len(events)])

    def fail_copy(self) -> None:
        if self.world.bed.hostile is not None:
            self.world.bed.hostile.failures = 1

    # -- agents and adapters ------------------------------------------------------------------

    def expect_agent(self, agent: int, at: float | None) -> None:
        self.world.memory.hint([(agent, at)])

    def advance(self, ticks: int) -> None:
        now = self.world.memory.timing.now + ticks
        self.world.memory.tick(now, 0.001 * ticks or None)

    def fork(self, parent: int, child: int) -> None:
        self.world.memory.fork(parent, child)

    def forget(self, agent: int) -> None:
        """Also one that has requests open: they go on as nobody's, and leave nothing."""
        for sequence, _ in self.open:
            if sequence.agent == agent:
                sequence.agent, sequence.leaves_nothing = None, True
        self.world.memory.forget(agent)

    def load_adapter(self, name: int, num_pages: int) -> None:
        """Give a name content that nothing had before."""
        if self.adapters:
            self.unload_adapter(name)
            most = max(1, self.setting.pages // 8)
            self.loaded[name % self.adapters] = self.world.add_adapter(1 + num_pages % most)

    def unload_adapter(self, name: int) -> None:
        """Also in use: who holds it goes on with it, who waits for it ends with an error."""
        if self.adapters and (use := self.loaded.pop(name % self.adapters, None)):
            self.removed.add(use.digest)
            self.world.memory.remove_adapter(use.digest)

    # -- what must hold -----------------------------------------------------------------------

    def check(self) -> None:
        self.world.check()

    def finish(self) -> None:
        """Faults stop, and everything that may happen does: every request ends as it must, and
        nothing is left behind."""
        world = self.world
        if world.bed.hostile is not None:
            world.bed.hostile.failures, world.bed.hostile.failure_rate = 0, 0.0
        world.schedule = Fair()
        world.run(200_000)
        self._settle()
        assert not self.open, f"{len(self.open)} requests never ended"
        self.num_ended = len(world.ended)
        assert len({each.id for each in world.ended}) == self.num_ended, "one ended twice"
        world.close()

    def _settle(self) -> None:
        """Judge what has ended."""
        ended = [pair for pair in self.open if pair[0].phase is Phase.FINISHED]
        for pair in ended:
            self.open.remove(pair)
            self._judge(*pair)

    def _judge(self, sequence: Sequence, prompt: list[int]) -> None:
        text, said = expected(sequence, prompt), sequence.output.tolist()
        assert said == text[: len(said)], f"{sequence} said {said}; alone it says {text}"
        bad = next((i for i, token in enumerate(text) if token in self.world.bad_tokens), None)
        reason, error = sequence.finish_reason, sequence.error
        if reason == "length":
            assert len(said) == len(text) and bad is None, (said, text, bad)
        elif reason == "error" and isinstance(error, NumericalError):
            assert bad == len(said), (bad, said, text)
        elif reason == "error" and isinstance(error, LinkError):
            assert sequence.attachment_failures > MAX_ATTACHMENT_FAILURES, (
                error,
                sequence.attachment_failures,
            )
        elif reason == "error":
            assert isinstance(error, AdapterError), error
            assert any(use.digest in self.removed for use in sequence.attachments)
        else:
            assert reason == "cancelled", (reason, error)
        self.history = [*self.history[-11:], prompt + said]

    def _prompt(self, agent: int, kind: str, pick: int, length: int) -> list[int]:
        fresh = self._tokens(1 + length)
        if kind == "own":
            return self.prefixes[agent] + fresh
        if kind == "fresh" or not self.history:
            return fresh
        old = self.history[pick % len(self.history)]
        if kind == "repeat":
            return list(old)
        if kind == "extend":
            return old + fresh
        return old[: 1 + pick % len(old)] + fresh

    def _tokens(self, count: int) -> list[int]:
        return [self.rng.randrange(3) for _ in range(count)]
