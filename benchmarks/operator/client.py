"""A client of the API server for many requests at a time: JSON in, JSON out, connections are reused."""

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp

from finetune_api import names
from finetune_trainer.pod.progress import Progress

Object = dict[str, Any]
Item = TypeVar("Item")

CONNECTIONS = 16
"""Requests at a time, each on a connection of its own that is reused."""
APPLY, MERGE = "application/apply-patch+yaml", "application/merge-patch+json"
METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
JOBS = f"/apis/{names.API_VERSION}/namespaces/{{}}/{names.JOBS}"
ALL_BATCH_JOBS = "/apis/batch/v1/jobs"
BATCH_JOBS = "/apis/batch/v1/namespaces/{}/jobs"
PODS = "/api/v1/namespaces/{}/pods"
CONFIG_MAPS = "/api/v1/namespaces/{}/configmaps"


class RefusedError(Exception):
    """The API server refused a request; `status` is the HTTP code."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Client:
    """One user of the API server at `server`."""

    def __init__(self, server: str, authority: Path, token: str) -> None:
        self.server, self.authority = server, authority
        self._headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        self._tls = ssl.create_default_context(cafile=str(authority))

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=0, ssl=self._tls)
        self._session = aiohttp.ClientSession(self.server, headers=self._headers, connector=connector)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def get(self, path: str, **query: str) -> Object:
        """Returns an object, or a list of objects."""
        return await self._request("GET", path, None, query)

    async def text(self, path: str) -> str:
        """Returns an answer that is not JSON."""
        async with self._session.get(path, headers={"Accept": "text/plain"}) as answer:
            if not answer.ok:
                raise RefusedError(answer.status, f"GET {path}")
            return await answer.text()

    async def create(self, path: str, body: Object) -> Object:
        """Returns the object that was created."""
        return await self._request("POST", path, body)

    async def apply(self, path: str, body: Object, manager: str) -> Object:
        """Server-side apply that takes over fields of other managers."""
        query = {"fieldManager": manager, "force": "true"}
        return await self._request("PATCH", path, body, query, APPLY)

    async def merge(self, path: str, body: Object) -> Object:
        """JSON merge patch."""
        return await self._request("PATCH", path, body, None, MERGE)

    async def watch(self, path: str, **query: str) -> AsyncIterator[Object]:
        """Yields the events of a watch of the metadata of objects, until the API server ends the watch."""
        headers, unlimited = {"Accept": METADATA_ONLY}, aiohttp.ClientTimeout(total=None)
        query["watch"] = "true"
        async with self._session.get(path, params=query, headers=headers, timeout=unlimited) as answer:
            if not answer.ok:
                raise RefusedError(answer.status, f"watch {path}: {await answer.text()}")
            async for line in answer.content:
                yield json.loads(line)

    async def _request(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        query: dict[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": content_type} if data else {}
        async with self._session.request(method, path, params=query, data=data, headers=headers) as answer:
            text = await answer.read()
            if not answer.ok:
                raise RefusedError(answer.status, f"{method} {path}: {text[:500].decode(errors='replace')}")
            content: Object = json.loads(text)
            return content


async def for_each(title: str, unit: str, items: Iterable[Item], work: Callable[[Item], Awaitable[object]]) -> float:
    """Does `work` for each item, `CONNECTIONS` at a time, and prints the progress. Returns the seconds it took."""
    waiting = list(items)
    left = iter(waiting)
    progress = Progress(f"  {title}", unit, len(waiting))
    started = time.monotonic()

    async def worker() -> None:
        for item in left:
            await work(item)
            progress.advance()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(CONNECTIONS):
            tasks.create_task(worker())
    return time.monotonic() - started
