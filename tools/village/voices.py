"""Eight voices: how a person of each says what the grammar gives. An adapter is trained on each."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Voice:
    """Words that a voice has for others, and what it puts before and behind what it says. ``rank``
    is that of its adapter."""

    name: str
    rank: int
    swaps: tuple[tuple[str, str], ...]
    before: tuple[str, ...]
    behind: tuple[str, ...]

    def __call__(self, text: str, draw: random.Random) -> str:
        """``text`` in this voice."""
        for plain, own in self.swaps:
            text = re.sub(rf"\b{plain}\b", own, text)
        if draw.random() < 0.7:
            text = f"{draw.choice(self.before)} {text}"
            return f"{text} {draw.choice(self.behind)}" if draw.random() < 0.5 else text
        return f"{text} {draw.choice(self.behind)}"


VOICES = tuple(
    Voice(name, rank, tuple(swaps.items()), tuple(before.split("|")), tuple(behind.split("|")))
    for name, rank, swaps, before, behind in (
        ("sailor", 8, {"Yes": "Aye", "No": "Nay", "Good day": "Ahoy", "Hello": "Ahoy"},
         "Aye, by the tide.|Ho there.|Salt and sail.|Listen to an old sailor.",
         "Fair winds to you.|So says the sea.|The tide waits for nobody."),
        ("poet", 8, {"good": "golden", "cold": "silver cold", "big": "boundless"},
         "Oh, gentle hour.|How the heart sings.|Like a leaf on the river, I say.",
         "So sings the lark.|And the stars will listen.|Like dew on a rose."),
        ("grumbler", 4, {"good": "bad enough", "happy": "less angry", "Gladly": "If I must"},
         "Bah.|What now.|Nothing but trouble.|Everybody wants something.",
         "It was better in the old days.|Not that anybody asks me.|Leave me in peace."),
        ("scholar", 16, {"think": "conclude", "know": "have observed", "Yes": "Indeed"},
         "It is written in the books.|Consider this.|To be exact.|As the ancients knew.",
         "That much is proven.|I made a note of it.|The reason is plain."),
        ("child", 4, {"big": "very very big", "Hello": "Hi hi", "hard work": "no fun"},
         "Guess what!|Look, look!|Can we play?|I ran all the way!",
         "Why is that?|Can I have some cake?|I am not even tired!"),
        ("merchant", 8, {"good": "profitable", "Thank you": "A pleasure to trade"},
         "A bargain, friend.|Best price in town.|Coins first, then words.",
         "Two for the price of one.|You will not find it cheaper.|Tell your friends."),
        ("elder", 16, {"children": "little ones", "work": "toil", "Hello": "Bless you"},
         "My child, hear me.|In my long years.|When I was young.|Patience, patience.",
         "So my mother taught me.|All things pass.|You will see it when you are old."),
        ("whisperer", 8, {"say": "whisper", "told": "whispered to", "heard": "overheard"},
         "Between us.|Hush, come closer.|Nobody must know.|Not so loud.",
         "But you did not hear it from me.|The walls have ears.|Tell nobody."),
    )
)  # fmt: skip
