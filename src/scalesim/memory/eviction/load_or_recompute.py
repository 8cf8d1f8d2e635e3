"""Load or rebuild: when state would be there if the link carried it, and when if it were computed.

Residency, look-ahead and leases ask; the scheduler and the loop tell what prefill takes.
Rates are measured while running: nothing is assumed of a machine, and until a prefill was seen
everything is loaded.
"""

from __future__ import annotations

from scalesim.memory.links.link import Link

_WEIGHT = 0.05  # of the newest iteration, or the newest with a prefill


class LoadOrRecompute:
    """Seconds, counted from now. ``weighs``: the policy chooses; otherwise nothing is rebuilt that
    could be loaded. ``page_bytes``, ``block_size``: of a block on the link, and in tokens."""

    def __init__(self, link: Link, page_bytes: int, block_size: int, *, weighs: bool) -> None:
        self.weighs = weighs
        self._link, self._page_bytes, self._block_size = link, page_bytes, block_size
        self._iteration_s = 0.0
        self._launched = self._running = (
            0  # prefill tokens, of this iteration and of the one before
        )
        self._tokens_s = self._tokens_tokens = 0.0  # running means of tokens × seconds, tokens²

    def prefills(self, num_tokens: int) -> None:
        """The step that is launched in this iteration prefills ``num_tokens``."""
        self._launched += num_tokens

    def observe_iteration(self, seconds: float | None) -> None:
        """The loop's iteration took ``seconds`` (``None``: it paused), and so did the step launched
        in the iteration before. The token's share is a least squares fit through 0: a full step
        tells what many tokens take, and a few beside a decode take no time of their own."""
        tokens, self._running, self._launched = self._running, self._launched, 0
        if seconds is not None:
            self._iteration_s += _WEIGHT * (seconds - self._iteration_s)
        if tokens and seconds is not None:
            self._tokens_s += _WEIGHT * (tokens * seconds - self._tokens_s)
            self._tokens_tokens += _WEIGHT * (tokens * tokens - self._tokens_tokens)

    def keep_rates(self, other: LoadOrRecompute) -> None:
        """Begin with what ``other`` measured."""
        self._iteration_s = other._iteration_s
        self._tokens_s, self._tokens_tokens = other._tokens_s, other._tokens_tokens

    def rebuild_s(self, blocks: int) -> float:
        """To compute ``blocks``, once it is their turn; infinite as long as that is not known."""
        if not self._tokens_tokens:
            return float("inf")
        return blocks * self._block_size * self._tokens_s / self._tokens_tokens

    def worth_loading(self, blocks: int, needed_s: float = 0.0) -> int:
        """How many of ``blocks``, from the first on, to load for somebody who goes on in
        ``needed_s``: all, if they are there by then, or at least sooner than if the others were
        computed, or within an iteration of the loop; else those that are there by then."""
        if not self.weighs:
            return blocks
        block_s = self._page_bytes / self._link.rate("in")
        left_s = needed_s - self._link.queued_bytes("in") / self._link.rate("in")
        late_s = blocks * block_s - left_s
        if not late_s > 0.0:
            return blocks
        in_time = max(0, int(left_s / block_s))
        worth_s = max(self._iteration_s, self.rebuild_s(blocks - in_time))
        return blocks if late_s <= worth_s else in_time

    def is_worth_saving(self, blocks: int) -> bool:
        """Whether somebody who needs the pages now should wait for ``blocks`` to be saved, and not
        let them be computed again later."""
        if not self.weighs:
            return True
        num_bytes = self._link.queued_bytes("out") + blocks * self._page_bytes
        worth_s = max(self._iteration_s, self.rebuild_s(blocks))
        return num_bytes / self._link.rate("out") <= worth_s
