"""Added and named special tokens of a model folder (``eos_token`` and others).

Up to four files define them. The result is that of transformers' ``AutoTokenizer``:

- ``tokenizer.json`` holds tokens that are added already;
- ``tokenizer_config.json`` names tokens, and may list added ones (``added_tokens_decoder``);
- only without that list, the names in ``special_tokens_map.json`` override those of
  ``tokenizer_config.json``, and ``added_tokens.json`` lists added tokens;
- a named token that no file lists is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from scalesim.checks import shown
from scalesim.errors import UnsupportedModelError
from scalesim.model.checkpoint.fields import Fields
from scalesim.model.checkpoint.files import Json, read_json_if_there

CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MORE = ("extra_special_tokens", "additional_special_tokens")  # the second is the older name
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")

Token = str | AddedToken


def read_tokenizer_config(folder: Path) -> Json:
    """The contents of tokenizer_config.json; empty if there is none. Raises UnsupportedModelError
    if it is not valid JSON."""
    return read_json_if_there(folder / CONFIG, error=UnsupportedModelError)


@dataclass
class SpecialTokens:
    """The special tokens of a folder, as ``of_folder`` reads them.

    ``named`` are the named tokens, ``more`` the special tokens without a name, and ``listed`` the
    added tokens that a file lists, in the order of their ids.
    """

    named: dict[str, Token] = field(default_factory=dict)
    more: list[Token] = field(default_factory=list)
    listed: list[AddedToken] = field(default_factory=list)

    @staticmethod
    def of_folder(folder: Path) -> SpecialTokens:
        """Read the folder's files. Raises UnsupportedModelError, naming file and key, for a value
        that is no token."""
        found = SpecialTokens()
        config = Fields(CONFIG, read_tokenizer_config(folder), UnsupportedModelError)
        found._take_names(config)
        if "added_tokens_decoder" in config.raw:
            listed = config.table("added_tokens_decoder")
            ids = {_id(listed, key): key for key in listed.raw}
            found.listed = [
                _added(listed, ids[number], special=False, string=False) for number in sorted(ids)
            ]
        else:
            found._take_names(_read(folder, MAP))
            found._take_added(_read(folder, ADDED))
        by_text = {token.content: token for token in found.listed}
        order = [*NAMES, *(name for name in found.named if name not in NAMES)]
        found.named = {
            name: by_text.get(_text(found.named[name]), found.named[name])
            for name in order
            if name in found.named
        }
        return found

    def _take_names(self, fields: Fields) -> None:
        for name in fields.raw:
            if name in NAMES:
                self.named.pop(name, None)
                if name in fields:  # null in a later file removes the name
                    self.named[name] = _added(fields, name, special=True)
            elif name.endswith("_token") and isinstance(fields.raw[name], str):
                self.named[name] = fields.raw[name]  # such as image_token, for templates
        for key in MORE:
            if key == MORE[1] and fields.raw.get(MORE[0]):
                break
            value = fields.raw.get(key)
            if isinstance(value, dict):
                table = fields.table(key)
                self.named |= {name: _added(table, name, special=True) for name in table.raw}
            elif isinstance(value, list):
                inner = fields.items(key, value)
                tokens = [_added(inner, name, special=True) for name in inner.raw]
                known = set(map(_text, self.more))
                self.more += [token for token in tokens if _text(token) not in known]
            elif value is not None:
                raise fields.wrong(key, value, "a list or an object of tokens")

    def _take_added(self, fields: Fields) -> None:
        special = {_text(token) for token in [*self.named.values(), *self.more]}
        ids = {text: fields.whole(text, minimum=0) for text in fields.raw}
        self.listed = [
            AddedToken(text, normalized=text not in special, special=text in special)
            for text in sorted(ids, key=lambda text: int(ids[text]))
        ]

    def check_eos(self, backend: tokenizers.Tokenizer) -> None:
        """Raise UnsupportedModelError for an end-of-sequence token that no file lists: it would get
        a new id, which the model never generates."""
        eos = self.named.get("eos_token")
        if eos is None or backend.token_to_id(_text(eos)) is not None:
            return
        if _text(eos) not in {token.content for token in self.listed}:
            raise UnsupportedModelError(
                f"eos_token {shown(_text(eos))} is not in tokenizer.json, nor listed as added, so "
                "no text would ever end"
            )

    def add_to(self, backend: tokenizers.Tokenizer) -> dict[str, str]:
        """Add the tokens that ``backend`` lacks. Returns the text of each named token."""
        there = backend.get_added_tokens_decoder()
        known = {repr(token) for token in there.values()}
        new: list[Token] = [token for token in self.listed if repr(token) not in known]
        texts = {token.content for token in there.values()} | set(map(_text, new))
        for token in [*self.named.values(), *self.more]:
            if _text(token) not in texts:
                new.append(token)
                texts.add(_text(token))
        names = {_text(token) for token in self.named.values()}
        for token in new:
            if isinstance(token, AddedToken) and token.content in names:
                token.special = True
        backend.add_tokens([AddedToken(t, special=True) if isinstance(t, str) else t for t in new])
        return {name: _text(token) for name, token in self.named.items()}


def _read(folder: Path, name: str) -> Fields:
    raw = read_json_if_there(folder / name, error=UnsupportedModelError)
    return Fields(name, raw, UnsupportedModelError)


def _added(fields: Fields, key: str, *, special: bool, string: bool = True) -> Any:
    """The token under ``key``: an object with ``content`` and flags, or with ``string`` also a
    plain string."""
    value = fields.raw[key]
    if isinstance(value, str) and string:
        return value
    if not isinstance(value, Mapping) or not isinstance(value.get("content"), str):
        wanted = "a string or an object with 'content'" if string else "an object with 'content'"
        raise UnsupportedModelError(f"{fields.where}: {key} is {shown(value)}; it must be {wanted}")
    flags = Fields(f"{fields.where}: {key}", value, UnsupportedModelError)
    given = {name: flags.flag(name) for name in _FLAGS if name in value}
    return AddedToken(value["content"], **(given | ({"special": True} if special else {})))


def _id(fields: Fields, key: str) -> int:
    if not key.isdecimal() or len(key) > 9:
        raise fields.wrong(key, fields.raw[key], "under a token id")
    return int(key)


def _text(token: Token) -> str:
    return token if isinstance(token, str) else str(token.content)
