"""``SmallMap`` is a dictionary in all but size; what segments share while they have nothing is
shared safely."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalesim.memory.tree.run import NOWHERE
from scalesim.memory.tree.segment import Segment
from scalesim.memory.tree.small_map import SmallMap

KEYS = st.sampled_from("abc")


@given(st.lists(st.tuples(st.sampled_from(["set", "pop", "del", "default"]), KEYS, st.integers())))
def test_it_does_what_a_dictionary_does(acts: list[tuple[str, str, int]]) -> None:
    few: SmallMap[str] = SmallMap()
    known: dict[str, int] = {}
    for act, key, number in acts:
        if act == "set":
            few[key] = known[key] = number
        elif act == "pop":
            assert few.pop(key, None) == known.pop(key, None)
        elif act == "default":
            assert few.setdefault(key, number) == known.setdefault(key, number)
        elif key in known:
            del few[key], known[key]
        else:
            with pytest.raises(KeyError):
                del few[key]
        assert list(few.items()) == list(known.items())  # the order as well
        assert list(few) == list(few.keys()) == list(known) and len(few) == len(known)
        assert few.sole == (next(iter(known)) if len(known) == 1 else None)
        for one in "abc":
            assert (one in few, few.get(one)) == (one in known, known.get(one))
            if one not in known:
                with pytest.raises(KeyError):
                    few[one]
        assert SmallMap(few) == few == known


def test_one_entry_takes_a_fourth_of_a_dictionary() -> None:
    few: SmallMap[object] = SmallMap({"a": 1})
    assert 4 * sys.getsizeof(few) <= sys.getsizeof({object(): 1})


def test_what_empty_segments_share_cannot_be_written() -> None:
    first, second = Segment(None, b"", 0, 1), Segment(None, b"", 0, 2)
    assert first.device is second.device is NOWHERE and first.children is second.children
    with pytest.raises(AttributeError):
        first.device.append(1)
    with pytest.raises(AttributeError):
        first.device.valid = 1
    with pytest.raises(TypeError):
        first.children[b""] = second
    first.owners[object()] = 1  # type: ignore[index]
    assert not second.owners and not SmallMap()
