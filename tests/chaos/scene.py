"""The whole cluster with two nodes, a proxy between pods and the API server, and lanes for tries side by side."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from devcluster import Cluster
from devcluster.namespaces import FIRST
from devcluster.node import Node
from devcluster.outages import Outages
from tests.chaos.harms import stand_in
from tests.e2e.setting import install_operator, make_tenant, profile, put_tiny_model, s3_client
from tests.e2e.tenant import SUMS_COLUMNS, Tenant, sums
from tests.integration.api_proxy import ApiProxy, S3Proxy
from tests.integration.jobs import Job
from tests.integration.kube import PROFILES, Kube, Object

API_PORT, S3_PORT = 6444, 8334
"""Ports of the proxies. Those to S3 have one port after the other."""
LANES = 7
"""Tries side by side, if not told otherwise: as many as phases, so that a fault that all jobs share can hit one job in
each."""
ROWS = "chaos.jsonl"
SECOND_NODE = "node-2"
LATE_PROFILE = "late"
"""The FineTuneProfile whose pods have a wrong clock."""


@dataclass
class Lane:
    """Where one try runs beside others: a namespace and a profile of its own, and a proxy of its own to S3."""

    scene: "Scene"
    tenant: Tenant
    s3: S3Proxy
    _mends: list[Callable[[], object]] = field(default_factory=list)

    def start(self, name: str, **spec: Any) -> Job:
        """Creates a job that spends some seconds in each phase. `spec`: fields beside or instead of its own; and
        its `labels`."""
        train = f"s3://data/{ROWS}"
        parts: Object = {
            "profileName": self.tenant.namespace,
            "dataset": {"train": [{"uri": train, "columns": SUMS_COLUMNS}]},
            "training": {"maxSteps": 120, "epochs": 100, "globalBatchSize": 4},
            "evaluation": {"maxRows": 4, "baselines": ["Base"]},
            **spec,
        }
        return self.tenant.create(name, train, **parts)

    def later(self, mends: Callable[[], object]) -> None:
        """Lets `mend` call this."""
        self._mends.append(mends)

    def mend(self) -> None:
        """Takes back whatever a fault of this lane's job has left behind. Does nothing the second time."""
        self.s3.mend()
        while self._mends:
            self._mends.pop()()


@dataclass
class Scene:
    """The cluster of one run. Use it as a context manager. `side_by_side`: how many tries have room in it, each in one
    of its `lanes`."""

    folder: Path
    side_by_side: int = LANES
    seed: int = 0
    lanes: list[Lane] = field(default_factory=list)

    def __enter__(self) -> Self:
        # Without this flag the API server would name itself as the endpoint of its Service, not the proxy.
        flags = ("--endpoint-reconciler-type=none",)
        self.cluster = Cluster(self.folder, nodes=2, gpus=self.side_by_side, api_server_flags=flags)
        self.cluster.up()
        try:
            self._prepare()
        except BaseException:
            self.cluster.down()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.api.close()
        for lane in self.lanes:
            lane.s3.close()
        self.cluster.down()

    def _prepare(self) -> None:
        self.nodes: dict[str, Node] = {node.site.name: node for node in self.cluster.nodes}
        self.outages: Outages = self.cluster.outages
        first = self.cluster.nodes[0]
        keys = first.plane.certificates
        identity = (keys / "kube-apiserver.crt", keys / "kube-apiserver.key")
        listen = first.namespaces.listen
        kube = Kube(self.cluster.kubeconfig)
        self.api = ApiProxy(kube.server, kube.authority, listen, API_PORT, identity, self.seed)
        self._lead_pods_to(first.site.address, API_PORT)
        with tempfile.TemporaryDirectory() as folder:
            self.cluster.load_image(stand_in.write_archive(Path(folder), self.cluster.pause))
            client: Any = s3_client(self.cluster)
            model = put_tiny_model(client, _empty(Path(folder)))
        install_operator(self.cluster)
        self.lanes = [self._lane(number, client, model) for number in range(self.side_by_side)]
        self.lanes[0].tenant.put_rows(ROWS, sums(80))
        late = profile(self.cluster.s3_endpoint, stand_in.LATE_IMAGE)
        kube.apply(f"{PROFILES}/{LATE_PROFILE}", {**late, "metadata": {"name": LATE_PROFILE}})

    def _lane(self, number: int, client: Any, model: str) -> Lane:
        listen = self.cluster.nodes[0].namespaces.listen
        s3 = S3Proxy(self.cluster.s3_endpoint, None, listen, S3_PORT + number, None, self.seed + number)
        tenant = make_tenant(self.cluster, client, model, s3.address, stand_in.IMAGE, f"lane-{number}")
        return Lane(self, tenant, s3)

    def _lead_pods_to(self, address: str, port: int) -> None:
        """Makes the Service `kubernetes`, which pods call, end at the proxy."""
        body = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": "kubernetes",
                "namespace": "default",
                "labels": {"kubernetes.io/service-name": "kubernetes"},
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        }
        self.cluster.kubectl("apply", "-f", "-", input=json.dumps(body))

    def mend(self) -> None:
        """Takes back whatever faults have left behind. Does nothing the second time."""
        self.use_first_node(True)
        self.api.mend()
        for lane in self.lanes:
            lane.mend()

    def use_first_node(self, used: bool) -> None:
        """Whether new pods may run on the first node, which cannot be lost: the control plane runs there."""
        self.cluster.kubectl("uncordon" if used else "cordon", FIRST.name)


def _empty(folder: Path) -> Path:
    (folder / "model").mkdir()
    return folder / "model"
