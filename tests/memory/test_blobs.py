"""Blobs in memory: they live on the host, come to the device with their owners, and are never lost
to make room for what can be computed again."""

from __future__ import annotations

import numpy as np
import pytest

from scalesim.core import Bytes2D
from scalesim.errors import StateError, StateLostError
from scalesim.memory.audit.integrity import check_integrity
from scalesim.memory.kinds import ValueForm
from scalesim.memory.links.link import LinkError
from scalesim.memory.manager import MemoryManager
from scalesim.memory.pools.page_access import ArrayPages
from scalesim.memory.state import NewValue, StateAccess
from tests.memory.test_residency import PAGE, manager, settle, turn, where

FORM = ValueForm(PAGE, "test", ("uint8", ()))


def rows(value: int, count: int) -> Bytes2D:
    return np.full((count, PAGE), value, np.uint8)


def access_to(memory: MemoryManager) -> StateAccess:
    pools = [np.zeros((pool.num_pages, PAGE), np.uint8) for pool in (memory.device, memory.host)]
    return StateAccess(memory, ArrayPages(*pools))


def test_a_blob_is_loaded_with_its_agent_and_evicted_without_a_copy() -> None:
    memory = manager(4, 8)
    state = access_to(memory)
    assert state.write("ada", "memory", FORM, rows(1, 3)) == 3
    blob = memory.blobs.find("ada", "memory")
    memory.hint([("ada", 1.0)])
    memory.plan(0.0)
    settle(memory)
    assert blob.segment.is_ready and memory.pages_of("ada").device == 3
    check_integrity(memory)
    turn(memory, 7, 3)
    assert not blob.segment.is_ready and memory.counters.saved_pages == 0
    assert len(blob.segment.host) == 3
    check_integrity(memory)


def test_kv_leaves_the_host_for_blobs_and_blobs_for_nothing() -> None:
    memory = manager(6, 6)
    state = access_to(memory)
    for agent in range(3):
        turn(memory, agent, 2)
        memory.hint([(agent, 5.0 + agent)])
    turn(memory, 9, 5)
    settle(memory)
    assert memory.host.num_free < 4
    assert state.write("ada", "memory", FORM, rows(1, 5)) == 5
    check_integrity(memory)
    for agent in range(8):
        turn(memory, agent, 4)
    memory.clear()
    assert (state.read("ada", "memory").rows[:5] == 1).all()
    assert memory.host.num_free == 1 and where(memory, 0) == (0, 0)
    with pytest.raises(StateError, match=r"takes 2 pages of 64 bytes, .* 5 of the host's 6: raise"):
        state.write("bob", "memory", FORM, rows(2, 2))
    memory.forget("ada")
    assert memory.host.num_free == 6
    check_integrity(memory)


def test_a_policy_without_a_host_pool_refuses() -> None:
    memory = manager(6, 6, "resident")
    with pytest.raises(StateError, match="policy 'resident' has no host pool here"):
        access_to(memory).write("ada", "memory", FORM, rows(1, 1))
    assert memory.blobs.books() == {}


def test_only_pages_that_differ_are_written_on_both_tiers() -> None:
    memory = manager(6, 6)
    state = access_to(memory)
    state.write("ada", "memory", FORM, rows(1, 3))
    memory.hint([("ada", 1.0)])
    memory.plan(0.0)
    assert memory.residency.transfers  # a copy reads the pages: they are not written under it
    assert state.write("ada", "memory", FORM, rows(2, 3)) == 3
    check_integrity(memory)
    settle(memory)
    memory.hint([("ada", 0.5)])
    memory.plan(0.0)
    settle(memory)
    blob = memory.blobs.find("ada", "memory")
    assert blob.segment.is_ready
    changed = rows(2, 3)
    changed[1, 5] = 9
    assert state.write("ada", "memory", FORM, changed) == 1
    assert state.write("ada", "memory", FORM, changed) == 0
    assert blob == memory.blobs.find("ada", "memory")
    memory.launched(1, 0)
    turn(memory, 7, 5)
    assert not blob.segment.device and (state.read("ada", "memory").rows == changed).all()


def test_forks_share_pages_until_one_writes() -> None:
    memory = manager(6, 6)
    state = access_to(memory)
    state.write("ada", "memory", FORM, rows(1, 2))
    memory.fork("ada", "bob")
    memory.fork("ada", "eve")
    assert memory.host.num_free == 4
    assert state.write("bob", "memory", FORM, rows(2, 2)) == 2
    assert memory.host.num_free == 2
    check_integrity(memory)
    assert [state.read(agent, "memory").rows[0, 0] for agent in ("ada", "bob", "eve")] == [1, 2, 1]
    memory.forget("ada")
    assert memory.host.num_free == 2
    state.remove("eve", "memory")
    assert memory.host.num_free == 4
    check_integrity(memory)


def test_a_failed_load_loses_no_blob() -> None:
    memory = manager(6, 6)
    state = access_to(memory)
    state.write("ada", "memory", FORM, rows(1, 2))
    memory.hint([("ada", 1.0)])
    memory.plan(0.0)
    (transfer,) = {id(moved): moved for moved in memory.residency.transfers.values()}.values()
    transfer.error = LinkError("lost")
    settle(memory)
    memory.residency.drops.drop_failed_load(transfer)
    check_integrity(memory)
    assert (state.read("ada", "memory").rows == 1).all()


def test_a_fault_loses_blobs_and_says_so() -> None:
    memory = manager(6, 6)
    state = access_to(memory)
    state.write("ada", "memory", FORM, rows(1, 2))
    memory.reset()
    assert state.names("ada") == {}
    with pytest.raises(StateLostError, match="'memory' of agent 'ada' was lost"):
        state.read("ada", "memory")
    memory.fork("ada", "bob")
    state.remove("bob", "memory")
    with pytest.raises(KeyError):
        state.read("bob", "memory")
    state.write("ada", "memory", FORM, rows(3, 1))
    assert (state.read("ada", "memory").rows == 3).all()


def test_values_are_written_all_or_none() -> None:
    memory = manager(6, 6)
    state = access_to(memory)
    first = {name: NewValue(FORM, rows(at, 2)) for at, name in enumerate("abc")}
    assert state.change("ada", {"a": first["a"], "b": first["b"]}, ["never"])
    with pytest.raises(StateError, match=r"'c', 'd' takes 4 pages of .* holds 4 of the host's 6"):
        more = {"a": NewValue(FORM, rows(9, 2)), "c": first["c"], "d": first["c"]}
        state.change("ada", more, ["b"])
    assert list(state.names("ada")) == ["a", "b"]
    assert (state.read("ada", "a").rows == 0).all()
    memory.fork("ada", "bob")
    assert state.change("bob", {"a": first["a"]})  # unchanged: shared as before
    assert memory.host.num_free == 2
    assert state.change("bob", {"a": NewValue(FORM, rows(7, 2))}, ["b"])
    assert list(state.names("bob")) == ["a"] and memory.host.num_free == 0
    check_integrity(memory)


def test_a_value_without_room_in_a_restore_is_lost_and_stays_lost() -> None:
    state = access_to(manager(6, 6))
    two, four = (FORM._replace(num_bytes=count * PAGE) for count in (2, 4))
    assert state.change("ada", {"a": NewValue(two, rows(1, 2)), "b": NewValue(four, rows(2, 4))})
    image = state.image(lambda agent: True)
    for _ in range(2):  # the second image is of what the first has left
        state = access_to(manager(6, 3))
        state.put_image(image, lambda form: pytest.fail("no value has a source"))
        image = state.image(lambda agent: True)
        assert (state.read("ada", "a").rows == 1).all()
        with pytest.raises(StateLostError, match="or a restore had no room for it"):
            state.read("ada", "b")
    assert state.change("ada", {"b": NewValue(FORM, rows(3, 1))})
    assert state.image(lambda agent: True)["lost"] == []


def test_many_blobs_push_out_none_of_an_agents_paths() -> None:
    memory = manager(40, 60)
    state = access_to(memory)
    for name in range(30):
        state.write(0, str(name), FORM, rows(name, 1))
    turn(memory, 0, 3)
    turn(memory, 0, 3)
    assert where(memory, 0)[0] == 3 and len(state.names(0)) == 30
    for name in range(30):
        assert (state.read(0, str(name)).rows == name).all()
    memory.forget(0)
    assert memory.device.num_free == 40 and memory.host.num_free == 60
