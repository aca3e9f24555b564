"""Compares the store with metadata-only lists of the API server, and repairs what the watches missed.

A watch that starts again after a while lists the objects that exist. It does not report objects that were deleted
meanwhile."""

import logging
from collections.abc import Iterator
from typing import NamedTuple

from finetune_operator.cluster.api import Api, ApiError, Chunk, selectors
from finetune_operator.store.store import CLUSTER_SCOPED, KINDS, Store

logger = logging.getLogger(__name__)


class Ref(NamedTuple):
    """An object as a list shows it."""

    kind: str
    namespace: str | None
    name: str
    uid: str
    version: int


class Survey(NamedTuple):
    """Everything that exists in the watched namespaces."""

    found: dict[str, Ref]
    """By uid."""
    versions: dict[str, int]
    """Version of the cluster at the time of the last list, by kind."""


def survey(api: Api, namespaces: tuple[str, ...]) -> Survey:
    """List the metadata of all watched objects; of all namespaces if none are named."""
    found: dict[str, Ref] = {}
    versions: dict[str, int] = {}
    for kind in KINDS:
        for scope in namespaces if namespaces and kind not in CLUSTER_SCOPED else (None,):
            for chunk in _chunks(api, kind, scope):
                versions[kind] = min(chunk.version, versions.get(kind, chunk.version))
                for item in chunk.metadata:
                    found[item.uid] = Ref(kind, item.namespace, item.name, item.uid, item.resource_version)
    return Survey(found, versions)


def _chunks(api: Api, kind: str, namespace: str | None) -> Iterator[Chunk]:
    """List one kind. A namespace and the operator's Role in it are deleted together. Such a namespace is skipped."""
    labels, fields = selectors(kind)
    try:
        yield from api.metadata(kind, namespace, labels, fields)
    except ApiError as error:
        if namespace is None or error.status != 403:
            raise
        logger.warning("The namespace %s is skipped: %s", namespace, error.message)


def missing(store: Store, survey: Survey) -> Iterator[Ref]:
    """Yield the objects that the store does not know, or knows in an older version only."""
    for ref in survey.found.values():
        known = store.version(ref.kind, ref.uid)
        if (known is None and not store.has(ref.kind, ref.uid)) or (known is not None and known < ref.version):
            yield ref


def deleted(store: Store, survey: Survey) -> Iterator[tuple[str, str]]:
    """Yield (kind, uid) of the known objects that were deleted before the survey."""
    for kind in KINDS:
        at = survey.versions.get(kind, 0)
        for uid, version in store.uids(kind).items():
            if uid not in survey.found and version <= at:
                yield kind, uid


def fetch(api: Api, store: Store, ref: Ref) -> None:
    """Read an object live into the store."""
    raw = api.get(ref.kind, ref.name, ref.namespace)
    if raw is not None and raw["metadata"]["uid"] == ref.uid:
        store.put(ref.kind, raw)
    else:
        store.remove(ref.kind, ref.uid)
