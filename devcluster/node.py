"""A node: containerd, kubelet and proxy, in the node's namespaces."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from devcluster import dns, images
from devcluster.control_plane import ControlPlane
from devcluster.namespaces import (
    FIRST,
    NODE_ADDRESS,
    POD_RANGE,
    SERVICE_RANGE,
    Namespaces,
    Site,
    clean_up_cgroups,
    make_cgroups,
)
from devcluster.processes import Processes

LEASE_SECONDS = 20
"""How long the control plane waits for a node of several before it counts as lost. A node says four times in this time
that it lives."""
GPU_RESOURCE = "nvidia.com/gpu"


@dataclass(frozen=True)
class Node:
    """One node. `host_mounts`: whether containers mount the machine's files, which only development images need.

    `is_alone`: whether there is no other node. Then Kubernetes' own patience with a node applies."""

    plane: ControlPlane
    namespaces: Namespaces
    gpus: int
    host_mounts: bool
    is_alone: bool = True

    @property
    def site(self) -> Site:
        return self.namespaces.site

    @property
    def folder(self) -> Path:
        """The folder of containerd and kubelet: images, containers, logs and volumes of pods."""
        return self.plane.folder / (self.site.name if self.site != FIRST else "")

    @property
    def components(self) -> list[str]:
        """The names of this node's processes. The first ends all of them."""
        return [f"{part}{self.site.suffix}" for part in ("namespaces", "containerd", "kubelet", "kube-proxy")]

    def start_containerd(self, processes: Processes, pause: Path) -> None:
        """Starts containerd and loads the images."""
        self.folder.mkdir(exist_ok=True)
        self._write_containerd_files()
        name = f"containerd{self.site.suffix}"
        processes.start(name, [*self.namespaces.enter(), "containerd", "--config", f"{self.folder}/containerd.toml"])
        processes.wait_for("containerd", lambda: self._ctr("version").returncode == 0, [name])
        images.write_archive(self.folder / "images.tar", pause)
        self.load_image(self.folder / "images.tar")

    def load_image(self, archive: Path) -> None:
        """Loads the images of an OCI or Docker archive into containerd."""
        self._ctr("--namespace", "k8s.io", "images", "import", "--all-platforms", str(archive)).check_returncode()

    def start(self, processes: Processes) -> None:
        """Starts kubelet and proxy, and waits until the node is Ready and advertises its GPUs."""
        site, kube, kubeconfig = self.site, str(self.plane.kube), self.plane.kubeconfig
        make_cgroups(site)
        self._write_kubelet_config()
        config = [f"--config={self.folder}/kubelet.json", f"--root-dir={self.folder}/kubelet"]
        identity = f"--hostname-override={site.name}"
        for program, arguments in (
            ("kubelet", [*config, identity, f"--node-ip={site.address}"]),
            # conntrack's limits apply to the whole machine and must not change.
            ("kube-proxy", [f"--cluster-cidr={POD_RANGE}", identity, "--conntrack-max-per-core=0"]),
        ):
            command = [*self.namespaces.enter(), kube, program, f"--kubeconfig={kubeconfig}", *arguments]
            processes.start(f"{program}{site.suffix}", command)
        self.wait_until_ready(processes)
        if self.gpus:
            self._advertise_gpus()

    def wait_until_ready(self, processes: Processes) -> None:
        """Raises ClusterError if the node is not Ready after a minute."""
        processes.wait_for(f"the node {self.site.name}", self._is_ready, self.components[1:3])

    def power_off(self, processes: Processes) -> None:
        """Ends everything on the node at once, as a loss of power does. The control plane is not told."""
        processes.stop(*self.components)
        self.namespaces.remove_link()
        clean_up_cgroups(self.site)

    def power_on(self, processes: Processes, pause: Path) -> None:
        """Starts the node again, with the files it had."""
        self.namespaces.open(pause)
        self.start_containerd(processes, pause)
        self.start(processes)

    def _is_ready(self) -> bool:
        path = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
        return self._kubectl("get", "node", self.site.name, "-o", path).stdout == "True"

    def _advertise_gpus(self) -> None:
        """Advertises GPUs as an extended resource without a device plugin, as Kubernetes documents."""
        path = "/status/capacity/" + GPU_RESOURCE.replace("/", "~1")
        patch = json.dumps([{"op": "add", "path": path, "value": str(self.gpus)}])
        self._kubectl(
            "patch", "node", self.site.name, "--subresource=status", "--type=json", "-p", patch
        ).check_returncode()

    def _kubectl(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [str(self.plane.kube), "kubectl", "--kubeconfig", str(self.plane.kubeconfig), *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    def _ctr(self, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
        command = [*self.namespaces.enter(), "ctr", "--address", f"{self.folder}/containerd.sock", *arguments]
        return subprocess.run(command, capture_output=True)

    def _write_containerd_files(self) -> None:
        routes = [
            {"dst": SERVICE_RANGE},
            {"dst": POD_RANGE},
            {"dst": f"{NODE_ADDRESS}/32", "gw": self.site.bridge_address},
        ]
        address_management = {
            "type": "host-local",
            "dataDir": f"{self.folder}/cni-data",
            "ranges": [[{"subnet": self.site.pod_range}]],
            "routes": routes,
        }
        bridge = {
            "type": "bridge",
            "bridge": "pods0",
            "isGateway": True,
            "ipMasq": False,
            "hairpinMode": True,
            "ipam": address_management,
        }
        network = {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]}
        (self.folder / "cni").mkdir(exist_ok=True)
        (self.folder / "cni" / "10-pods.conflist").write_text(json.dumps(network))
        default = subprocess.run(["ctr", "oci", "spec"], capture_output=True, text=True, check=True).stdout
        spec = json.loads(default)
        if self.host_mounts:
            spec["mounts"] += images.mounts()
        (self.folder / "container-spec.json").write_text(json.dumps(spec))
        (self.folder / "containerd.toml").write_text(_CONTAINERD.format(d=self.folder, pause=images.PAUSE_IMAGE))

    def _write_kubelet_config(self) -> None:
        keys = self.plane.certificates
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": self.site.address,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": f"{keys}/ca.crt"},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": f"{keys}/kubelet.crt",
            "tlsPrivateKeyFile": f"{keys}/kubelet.key",
            "clusterDNS": [NODE_ADDRESS],
            "clusterDomain": dns.DOMAIN,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self.site.cgroup,
            **({} if self.is_alone else {"nodeLeaseDurationSeconds": LEASE_SECONDS}),
            "failCgroupV1": False,
            "failSwapOn": False,
            "enforceNodeAllocatable": [],
            "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
            "imageGCHighThresholdPercent": 100,
            "podLogsDir": f"{self.folder}/pod-logs",
            "volumePluginDir": f"{self.folder}/volume-plugins",
            "containerRuntimeEndpoint": f"unix://{self.folder}/containerd.sock",
        }
        (self.folder / "kubelet.json").write_text(json.dumps(config, indent=1))


_CONTAINERD = """version = 2
root = "{d}/containerd"
state = "{d}/containerd-state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing"]
[grpc]
  address = "{d}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  # Lowering a container's OOM score needs CAP_SYS_RESOURCE, which root in a container or sandbox may lack.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{d}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    base_runtime_spec = "{d}/container-spec.json"
"""
