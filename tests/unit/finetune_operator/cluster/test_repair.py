"""The comparison of the store with lists of metadata: what watches missed is found, and nothing else."""

from collections.abc import Iterator
from typing import Any

import pytest

from finetune_operator.cluster.api import ApiError, Chunk, Metadata
from finetune_operator.cluster.repair import Ref, deleted, fetch, missing, survey
from finetune_operator.observed.facts.pods import Object
from finetune_operator.store.store import CLUSTER_SCOPED, JOB, KINDS, PROFILE, RUN, Store
from tests.unit.finetune_operator.store.objects import job, run


class Lists:
    """An API server that only lists: `objects` by kind, at version 50."""

    def __init__(self, objects: dict[str, list[Object]], forbidden: str = "") -> None:
        self.objects, self.forbidden = objects, forbidden
        self.asked: list[tuple[str, str | None]] = []

    def metadata(self, kind: str, namespace: str | None, labels: str = "", fields: str = "") -> Iterator[Chunk]:
        self.asked.append((kind, namespace))
        if namespace is not None and namespace == self.forbidden:
            raise ApiError(403, "forbidden")
        for item in self.objects.get(kind, []):
            metadata = item["metadata"]
            version = int(metadata["resourceVersion"])
            yield Chunk([Metadata(metadata["uid"], metadata["name"], version, metadata.get("namespace"))], 50)
        yield Chunk([], 50)

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        found = (item for item in self.objects.get(kind, []) if item["metadata"]["name"] == name)
        return next(found, None)


@pytest.fixture
def store() -> Store:
    return Store(lambda key: None)


def api(forbidden: str = "", **objects: list[Object]) -> Any:
    return Lists({JOB: objects.get("jobs", []), RUN: objects.get("runs", [])}, forbidden)


def test_an_object_is_missing_until_the_store_has_its_version_or_a_newer_one(store: Store) -> None:
    found = survey(api(jobs=[job("a", 5), job("b", 7)], runs=[run("r", 6)]), ())
    assert [ref.uid for ref in missing(store, found)] == ["a", "b", "r"]
    store.put(JOB, job("a", 9))
    store.put(JOB, job("b", 6))
    store.put(RUN, run("r", 6))
    assert [ref.uid for ref in missing(store, found)] == ["b"]


def test_an_object_that_was_deleted_after_the_list_is_not_missing(store: Store) -> None:
    found = survey(api(jobs=[job("a", 5)]), ())
    store.put(JOB, job("a", 5))
    store.remove(JOB, "a")
    assert list(missing(store, found)) == []


def test_only_what_is_absent_and_older_than_the_list_was_deleted(store: Store) -> None:
    store.put(JOB, job("absent", 40, name="absent"))
    store.put(JOB, job("created after the list", 51, name="new"))
    store.put(JOB, job("listed", 7))
    assert list(deleted(store, survey(api(jobs=[job("listed", 9)]), ()))) == [(JOB, "absent")]


def test_a_release_with_namespaces_lists_each_of_them_and_the_profiles_of_the_cluster(store: Store) -> None:
    lists = api()
    survey(lists, ("tickets", "search"))
    scoped = {(kind, namespace) for kind in KINDS if kind not in CLUSTER_SCOPED for namespace in ("tickets", "search")}
    assert set(lists.asked) == scoped | {(PROFILE, None)}


def test_a_namespace_whose_role_is_gone_is_skipped(store: Store) -> None:
    assert list(survey(api("tickets", jobs=[job("a", 5)]), ("tickets", "search")).found) == ["a"]


def test_the_whole_cluster_cannot_be_skipped(store: Store) -> None:
    class Forbidden(Lists):
        def metadata(self, kind: str, namespace: str | None, labels: str = "", fields: str = "") -> Iterator[Chunk]:
            raise ApiError(403, "forbidden")
            yield

    with pytest.raises(ApiError):
        survey(Forbidden({}), ())  # type: ignore[arg-type]


def test_what_was_missed_is_read_and_what_is_gone_is_forgotten(store: Store) -> None:
    lists = api(jobs=[job("a", 9)])
    fetch(lists, store, Ref(JOB, "team", "tickets", "a", 9))
    assert store.uids(JOB) == {"a": 9}
    store.put(RUN, run("r", 5))
    fetch(lists, store, Ref(RUN, "team", "tickets-train", "r", 7))
    assert store.uids(RUN) == {}
