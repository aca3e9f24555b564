"""A new control plane with the chart, and the operator's identity on it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import yaml

from benchmarks.operator import audit
from benchmarks.operator.client import JOBS, Client, Object, RefusedError
from benchmarks.operator.etcd import Etcd
from benchmarks.operator.process import OperatorProcess
from devcluster import Cluster
from finetune_api import names

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "finetune-operator"
FOLDER = ROOT / "build" / "bench-operator"
SYSTEM, RELEASE = "finetune-system", "bench"
ACCOUNT = f"{RELEASE}-finetune-operator"
TOKEN_SECONDS = 4 * 3600
CONTROLLER_FLAGS = ("--terminated-pod-gc-threshold=0",)
"""Ended pods stay. By default those beyond 12,500 are deleted, 20 per second, and 10,000 ended jobs have 20,000."""
PROFILE: Object = {
    "apiVersion": names.API_VERSION,
    "kind": names.PROFILE_KIND,
    "metadata": {"name": "default"},
    "spec": {
        "trainer": {"image": "registry.example/trainer@sha256:feed"},
        "gpuTypes": [{"name": "h100", "nodeSelector": {"gpu.example/model": "h100"}}],
        "storages": [{"buckets": ["acme-*"], "endpoint": "https://s3.example", "credentialsSecretName": "s3-keys"}],
    },
}


@dataclass
class Plane:
    """The control plane of one case."""

    admin: Client
    as_operator: Client
    """Has the rights of the operator. Its requests are in the audit log too, so it works only while no operator runs
    or while nobody counts."""
    operator: OperatorProcess
    requests: audit.AuditLog
    etcd: Etcd

    async def namespace(self, prefix: str = "tenant") -> str:
        """Creates a tenant's namespace that enforces the restricted Pod Security Standard. Returns its name."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"generateName": f"{prefix}-", "labels": labels}}
        return str((await self.admin.create("/api/v1/namespaces", body))["metadata"]["name"])

    async def job(self, namespace: str, name: str) -> Object:
        """Creates the shortest FineTuneJob, with an output of its own. Returns it."""
        return await self.admin.create(JOBS.format(namespace), manifest(name))

    async def quiet(self, seconds: float = 0.7) -> None:
        """Waits until the operator has sent no request for this time."""
        size = -1
        while size != (size := self.requests.size()):
            self.operator.require_alive()
            await asyncio.sleep(seconds)


def manifest(name: str) -> Object:
    """Returns the shortest FineTuneJob, with an output of its own."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.JOB_KIND,
        "metadata": {"name": name},
        "spec": {
            "model": {"uri": "s3://acme-models/smollm2"},
            "dataset": {"train": [{"uri": "s3://acme-data/tickets/*.jsonl"}]},
            "output": {"uri": f"s3://acme-models/{name}-{uuid4().hex}"},
        },
    }


@asynccontextmanager
async def plane(folder: Path = FOLDER) -> AsyncIterator[Plane]:
    """A new control plane with the chart and a profile, and without a running operator. Takes about 15 seconds.

    Logs of the operator and of the components stay in `folder`."""
    flags = audit.flags(folder, f"system:serviceaccount:{SYSTEM}:{ACCOUNT}")
    cluster = Cluster(folder / "control-plane", nodes=0, api_server_flags=flags, controller_flags=CONTROLLER_FLAGS)
    await asyncio.to_thread(cluster.down)  # a benchmark that was killed leaves its control plane
    try:
        await asyncio.to_thread(cluster.up)
        await asyncio.to_thread(_install, cluster)
        config = json.loads(cluster.kubeconfig.read_text())
        server: str = config["clusters"][0]["cluster"]["server"]
        authority = Path(config["clusters"][0]["cluster"]["certificate-authority"])
        async with Client(server, authority, config["users"][0]["user"]["token"]) as admin:
            token = await _operator_token(admin)
            await _create_profile(admin)
            operator = OperatorProcess(folder, server, authority, token)
            async with Client(server, authority, token) as as_operator, Etcd(cluster.etcd_endpoint) as etcd:
                try:
                    yield Plane(admin, as_operator, operator, audit.AuditLog(audit.log(folder)), etcd)
                finally:
                    operator.stop()
    finally:
        await asyncio.to_thread(cluster.down)


def _install(cluster: Cluster) -> None:
    """Installs the chart without its Deployment, because there is no node, and without its profile."""
    rendered = cluster.helm("template", RELEASE, str(CHART), "--include-crds", "--namespace", SYSTEM)
    objects = [o for o in yaml.safe_load_all(rendered) if o and o["kind"] not in ("Deployment", names.PROFILE_KIND)]
    objects.insert(0, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}})
    cluster.kubectl("apply", "--server-side", "-f", "-", input=yaml.safe_dump_all(objects))


async def _operator_token(admin: Client) -> str:
    path = f"/api/v1/namespaces/{SYSTEM}/serviceaccounts/{ACCOUNT}/token"
    answer = await admin.create(path, {"spec": {"audiences": [], "expirationSeconds": TOKEN_SECONDS}})
    return str(answer["status"]["token"])


async def _create_profile(admin: Client) -> None:
    """Creates the profile as soon as the API server serves both kinds."""
    async with asyncio.timeout(60):
        for plural in (names.JOBS, names.PROFILES):
            await _served(admin, plural)
    await admin.create(f"/apis/{names.API_VERSION}/{names.PROFILES}", PROFILE)


async def _served(admin: Client, plural: str) -> None:
    while True:
        try:
            await admin.get(f"/apis/{names.API_VERSION}/{plural}")
            return
        except RefusedError as error:
            if error.status not in (404, 429):  # 429: the storage of a new kind is being set up
                raise
        await asyncio.sleep(0.2)
