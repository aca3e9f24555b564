"""Objects of one kind by uid: the newest known version of each, and one index."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, Protocol, TypeVar

REMEMBERED_DELETIONS = 20_000
"""Number of deleted uids that are remembered, so that a late answer does not bring an object back."""


class Kept(Protocol):
    """The kept part of an object. Two are equal if no decision can differ; `version` does not count."""

    @property
    def uid(self) -> str: ...

    @property
    def version(self) -> int:
        """The resourceVersion, which is comparable: https://kep.k8s.io/5504"""


K = TypeVar("K", bound=Kept)


class Table(Generic[K]):
    """Newest versions by uid, and the objects of each group. Not thread-safe."""

    def __init__(self, group: Callable[[K], Hashable]) -> None:
        self._group = group
        self._items: dict[str, K] = {}
        self._groups: dict[Hashable, tuple[str, ...]] = {}
        """uids by group. Most groups have one or two members, for which a dictionary needs four times the memory."""
        self._deleted: OrderedDict[str, None] = OrderedDict()
        self._ignored: dict[str, int] = {}
        """Versions by uid of objects that exist and are not kept."""

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[K]:
        return iter(self._items.values())

    def get(self, uid: str) -> K | None:
        return self._items.get(uid)

    def of(self, group: Hashable) -> list[K]:
        """Return the objects of a group."""
        return [self._items[uid] for uid in self._groups.get(group, ())]

    def has(self, uid: str) -> bool:
        """Whether the object is known, also as deleted or as ignored."""
        return uid in self._items or uid in self._deleted or uid in self._ignored

    def put(self, item: K) -> bool:
        """Keep `item`. Return False, and keep nothing, if the known version is as new or the object was deleted."""
        before = self._items.get(item.uid)
        if item.uid in self._deleted or (before is not None and before.version >= item.version):
            return False
        if self._ignored.get(item.uid, 0) > item.version:
            return False
        self._ignored.pop(item.uid, None)
        if before is not None and self._group(before) != self._group(item):
            self._leave_group(before)
        self._items[item.uid] = item
        members = self._groups.get(self._group(item), ())
        if item.uid not in members:
            self._groups[self._group(item)] = (*members, item.uid)
        return True

    def remove(self, uid: str) -> K | None:
        """Forget the object for good: its uid is never used again. Return its last version, if it was known."""
        self._deleted[uid] = None
        if len(self._deleted) > REMEMBERED_DELETIONS:
            self._deleted.popitem(last=False)
        self._ignored.pop(uid, None)
        return self._drop(uid)

    def ignore(self, uid: str, version: int) -> K | None:
        """Keep this version of the object no longer. Return its last version, if it was kept and older."""
        before = self._items.get(uid)
        if uid in self._deleted or (before is not None and before.version >= version):
            return None
        self._ignored[uid] = max(version, self._ignored.get(uid, 0))
        return self._drop(uid)

    def _drop(self, uid: str) -> K | None:
        item = self._items.pop(uid, None)
        if item is not None:
            self._leave_group(item)
        return item

    def _leave_group(self, item: K) -> None:
        group = self._group(item)
        members = tuple(uid for uid in self._groups[group] if uid != item.uid)
        if members:
            self._groups[group] = members
        else:
            del self._groups[group]
