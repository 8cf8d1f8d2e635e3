"""Concordia (``gdm-concordia``): a language model for each entity, and hints from the game master.

``AgentModel`` is a LanguageModel; ``own_models`` gives each entity one of its own by its name;
``announce`` has a Concordia engine say who acts next. Concordia itself is not imported: only its
public methods are used.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

NEXT_ACTING = "__next_acting__"
"""Concordia's key of a game master's component that decides whose turn is next."""
CONTINUE = (
    "Continue the user's text. Give only what comes next, and repeat nothing of what is there."
)


class AgentModel:
    """Concordia's LanguageModel, of one agent on ``engine``.

    ``instructions`` is the system message before each prompt, for models that were trained to chat;
    ``None`` gives the model the bare text. ``max_tokens`` bounds an answer, because Concordia asks
    for thousands. ``stays_near``: the agent is expected again at once after each call, as a game
    master is. ``options`` are fields of ``Request`` and ``SamplingParams`` for all calls.
    """

    def __init__(
        self,
        engine: Any,
        name: str = "game master",
        *,
        instructions: str | None = CONTINUE,
        max_tokens: int = 256,
        stays_near: bool = True,
        **options: Any,
    ) -> None:
        self.engine, self.name = engine, name
        self._instructions, self._max_tokens = instructions, max_tokens
        self._stays_near, self._options = stays_near, options
        self._agent = engine.agent(name)

    def of(self, name: str, *, stays_near: bool = False) -> AgentModel:
        """The same for another agent."""
        return AgentModel(
            self.engine,
            name,
            instructions=self._instructions,
            max_tokens=self._max_tokens,
            stays_near=stays_near,
            **self._options,
        )

    def sample_text(
        self,
        prompt: str,
        *,
        max_tokens: int = 5000,
        terminators: Collection[str] = (),
        temperature: float = 1.0,
        top_p: float = 0.95,
        top_k: int = 64,
        timeout: float = 60.0,
        seed: int | None = None,
    ) -> str:
        """The continuation of ``prompt`` up to the first terminator. Raises ``TimeoutError``."""
        options = {} if seed is None else {"seed": seed}
        reply = self._agent.generate(
            self._prompt(prompt),
            max_tokens=min(max_tokens, self._max_tokens),
            stop=tuple(terminators),
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            timeout=timeout,
            **options,
            **self._options,
        )
        self._say_near()
        return str(reply.text)

    def sample_choice(
        self, prompt: str, responses: Sequence[str], *, seed: int | None = None
    ) -> tuple[int, str, Mapping[str, Any]]:
        """The likeliest of ``responses``, its index, and each one's log-probability: the prompt is
        computed once and no answer has to be parsed. ``seed`` plays no part."""
        choice = self._agent.choose(self._prompt(prompt), list(responses))
        self._say_near()
        logprobs = [score.logprob for score in choice.scores]
        return choice.index, responses[choice.index], {"logprobs": logprobs}

    def _prompt(self, prompt: str) -> str | list[dict[str, str]]:
        if self._instructions is None:
            return prompt
        return [
            {"role": "system", "content": self._instructions},
            {"role": "user", "content": prompt},
        ]

    def _say_near(self) -> None:
        if self._stays_near:
            self.engine.expect(self.name, 0)


class _OwnModel:
    """A prefab that builds as ``prefab`` does, with a model of the entity's own. A simulation sets
    ``params`` and ``entities`` before it builds."""

    def __init__(self, prefab: Any) -> None:
        self._prefab = prefab
        self.params: Mapping[str, Any] = prefab.params
        self.entities: Any = getattr(prefab, "entities", ())

    def build(self, model: AgentModel, memory_bank: Any) -> Any:
        self._prefab.params, self._prefab.entities = self.params, self.entities
        name = self.params.get("name", type(self._prefab).__name__)
        return self._prefab.build(model=model.of(name), memory_bank=memory_bank)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # while a copy is being made, it has no prefab yet
            raise AttributeError(name)
        return getattr(self._prefab, name)


def own_models(prefabs: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """``prefabs``, of which those called ``names`` give each entity a model of its own. Name the
    entities' prefabs; a game master keeps the model that the simulation was made with."""
    own = set(names)
    return {name: _OwnModel(prefab) if name in own else prefab for name, prefab in prefabs.items()}


def announce(engine: Any, model: AgentModel) -> Any:
    """Have Concordia's ``engine`` say who acts next, and return that engine. The clock of
    ``model.engine`` goes on by a tick at each turn.

    In a fixed order, everybody's distance is exact. Where the game master chooses, only those who
    act now are known; give ``scalesim.Engine`` a ``Learned`` source for the others.
    """
    choose = engine.next_acting

    def next_acting(game_master: Any, entities: Any, *args: Any, **named: Any) -> Any:
        chosen = choose(game_master, entities, *args, **named)
        model.engine.tick()
        acting = chosen[0] if isinstance(chosen[0], (list, tuple)) else [chosen[0]]
        turns = turns_ahead(game_master) | {entity.name: 0.0 for entity in acting}
        for name in turns:
            model.engine.agent(name)
        model.engine.expect(turns)
        return chosen

    engine.next_acting = next_acting
    return engine


def turns_ahead(game_master: Any) -> dict[str, float]:
    """Turns until each entity acts, as the game master's fixed order has it; empty for one without.
    The entity whose turn it is now comes again after all others."""
    try:
        state = game_master.get_component(NEXT_ACTING).get_state()
    except (AttributeError, KeyError):
        return {}
    sequence, index = state.get("sequence"), state.get("currently_active_player_idx")
    if not sequence or index is None:
        return {}
    size = len(sequence)
    return {sequence[(index + turn) % size]: float(turn) for turn in range(size, 0, -1)}
