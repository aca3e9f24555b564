"""Which models leave the cache."""

from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.base.cache.room import Entry, to_evict

ENTRIES = st.lists(
    st.builds(Entry, st.uuids().map(str), st.integers(0, 100), st.floats(0, 100), st.booleans()), max_size=8
)


@given(ENTRIES, st.integers(0, 200), st.integers(0, 200), st.none() | st.integers(0, 300))
def test_as_few_leave_as_are_needed_and_the_least_recently_used_first(
    entries: list[Entry], needed: int, free: int, most: int | None
) -> None:
    by_key, chosen = {entry.key: entry for entry in entries}, to_evict(entries, needed, free, most)
    idle = [entry for entry in entries if not entry.in_use]

    def fits(leaving: list[Entry]) -> bool:
        gone, all_of_them = sum(entry.size for entry in leaving), sum(entry.size for entry in entries)
        return needed <= free + gone and (most is None or all_of_them - gone + needed <= most)

    assert (chosen is None) is not fits(idle)
    if chosen is None:
        return
    leaving = [by_key[key] for key in chosen]
    assert fits(leaving)
    assert not any(entry.in_use for entry in leaving)
    assert not leaving or not fits(leaving[:-1])
    staying = [entry for entry in idle if entry.key not in chosen]
    assert all(entry.used <= other.used for entry in leaving for other in staying)


def test_nothing_leaves_for_a_model_that_would_not_fit_then() -> None:
    assert to_evict([Entry("a", 10, 1.0), Entry("b", 10, 2.0, in_use=True)], needed=25, free=5, most=None) is None
    assert to_evict([Entry("a", 10, 1.0)], needed=25, free=100, most=20) is None
