"""The map of places against sets."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from strongroom.sealed.places import PlaceMap, reach_of


class PlaceMachine(RuleBasedStateMachine):
    """No place that a version still needed reaches is ever given out, and every other one below the end is."""

    @initialize(first=st.sampled_from([1, 4]), newest=st.sets(st.integers(4, 30)))
    def create(self, first, newest):
        self.first = first
        flags = bytearray(40)
        for place in newest:
            flags[place] = 1
        self.map = PlaceMap(first, reach_of(flags))
        self.now, self.newest, self.prepared = set(newest), set(newest), None
        self.held: list[tuple[set[int], int]] = []

    def needed(self):
        return self.now.union(self.newest, self.prepared or (), *(places for places, _ in self.held))

    @rule(count=st.integers(0, 20))
    def allocate(self, count):
        needed = self.needed()
        found = self.map.allocate(count)
        free = [place for place in range(self.first, 200 + 2 * len(needed)) if place not in needed]
        assert found == free[:count]
        self.now.update(found)

    @rule(data=st.data())
    def release(self, data):
        places = data.draw(st.sets(st.sampled_from(sorted(self.now)))) if self.now else set()
        self.map.release(places)
        self.now -= places

    @rule()
    def clear(self):
        self.map.clear()
        self.now = set()

    @rule()
    def prepare(self):
        assert self.map.prepare() == max(self.now, default=self.first - 1) + 1
        self.prepared = set(self.now)

    @precondition(lambda self: self.prepared is not None)
    @rule()
    def commit(self):
        self.held.append((self.newest, self.map.committed()))
        self.newest, self.prepared = self.prepared, None

    @rule(data=st.data())
    def hold(self, data):
        keep = data.draw(st.lists(st.booleans(), min_size=len(self.held), max_size=len(self.held)))
        self.held = [version for version, kept in zip(self.held, keep, strict=True) if kept]
        self.map.hold(reach for _, reach in self.held)

    @invariant()
    def counts(self):
        if hasattr(self, "map"):
            needed = self.needed()
            assert self.map.extent() == max(needed, default=self.first - 1) + 1
            assert self.map.built() == len(self.now)
            assert self.map.built_from(10) == any(place >= 10 for place in self.now)
            assert self.map.free_below(20) == len(set(range(self.first, 20)) - needed)


TestPlaces = PlaceMachine.TestCase
TestPlaces.settings = settings(max_examples=60, deadline=None)


def test_a_reach_says_which_places():
    reach = reach_of(bytearray([0, 0, 1, 0, 1, 0]))
    assert reach == 0b10100
    assert PlaceMap(1, reach).allocate(4) == [1, 3, 5, 6]
    assert reach_of(bytearray()) == 0
