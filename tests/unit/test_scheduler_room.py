"""How much room a scheduler takes a cell to have, of which some nodes are drained and still hold what they held."""

from shoal.wire import messages as m
from shoal_scheduler.core.room import Needs, Rooms, Want

GIB = 2**30
GPU = (("gpu", "y"),)


def want(labels: tuple[tuple[str, str], ...] = (), cpu_milli: int = 0) -> Want:
    return Want(Needs("", labels), GIB, cpu_milli, 0)


def rooms(*pools: m.Pool) -> Rooms:
    found = Rooms()
    nodes = sum(pool.nodes for pool in pools)
    found.set(m.CellCapacity(sum(pool.total.slots for pool in pools if pool.nodes), nodes, ("zygote",), pools))
    return found


def pool(slots: int, nodes: int = 1, labels: tuple[tuple[str, str], ...] = (), cpu_milli: int = 0) -> m.Pool:
    room = m.Room(slots, slots * GIB, cpu_milli)
    return m.Pool("zygote", labels, nodes, room, room if nodes else m.Room(0))


def test_what_is_held_on_drained_nodes_takes_no_room_of_the_others() -> None:
    found = rooms(pool(20, 2), pool(10, 0))
    found.give(want(), 10)
    assert found.fits(want()) == 20
    found.give(want(), 5)
    assert found.fits(want()) == 15


def test_it_is_no_room_for_what_is_larger_than_the_others() -> None:
    found = rooms(pool(20, 2), pool(10, 0))
    assert found.holds(want()) == 20
    assert found.total[0] == 20


def test_it_is_no_offer_of_what_only_drained_nodes_are() -> None:
    found = rooms(pool(20, 2), pool(10, 0, GPU))
    found.give(want(), 10)
    assert (found.offers(Needs("", GPU)), found.fits(want(GPU))) == ((), 0)
    assert found.fits(want()) == 20


def test_of_what_is_not_counted_nothing_is_missing() -> None:
    found = rooms(pool(20, 2, cpu_milli=8_000), pool(10, 0))
    found.give(want(), 10)
    assert found.fits(want(cpu_milli=1_000)) == 8
    found.give(want(cpu_milli=1_000), 3)
    assert found.fits(want(cpu_milli=1_000)) == 5


def test_where_all_nodes_are_drained_nothing_fits() -> None:
    found = rooms(pool(10, 0))
    found.give(want(), 10)
    assert (found.fits(want()), found.holds(want()), found.capacity.nodes) == (0, 0, 0)
