"""A client of etcd's JSON gateway (https://etcd.io/docs/v3.6/dev-guide/api_grpc_gateway/)."""

import base64
from typing import Any, Self

import aiohttp

MOST_PUTS = 100
"""Keys in one transaction. etcd permits 128 operations and 1.5 MB, and the largest object has 7 kB."""


class Etcd:
    """etcd at `url`, without authentication."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(self._url, raise_for_status=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def get(self, key: str) -> bytes:
        """Returns the value of a key. Raises KeyError if etcd does not have it."""
        found = (await self._call("range", {"key": _text(key.encode())})).get("kvs")
        if not found:
            raise KeyError(key)
        return base64.b64decode(found[0]["value"])

    async def put(self, values: dict[str, bytes]) -> None:
        """Writes up to `MOST_PUTS` values by key, in one transaction."""
        puts = [{"requestPut": {"key": _text(key.encode()), "value": _text(value)}} for key, value in values.items()]
        await self._call("txn", {"success": puts})

    async def _call(self, method: str, body: dict[str, Any]) -> dict[str, Any]:
        async with self._session.post(f"/v3/kv/{method}", json=body) as answer:
            content: dict[str, Any] = await answer.json()
            return content


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()
