"""The node: containerd, kubelet, scheduler and proxy, in the node's namespaces."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from devcluster import images
from devcluster.control_plane import ControlPlane
from devcluster.namespaces import BRIDGE_ADDRESS, NODE_ADDRESS, POD_RANGE, SERVICE_RANGE
from devcluster.processes import Processes

NAME = "node"
GPU_RESOURCE = "nvidia.com/gpu"


@dataclass(frozen=True)
class Node:
    """The node. `host_mounts`: whether containers mount the machine's files, which only development images need."""

    plane: ControlPlane
    gpus: int
    host_mounts: bool

    @property
    def _folder(self) -> Path:
        return self.plane.folder

    def start_containerd(self, processes: Processes, pause: Path) -> None:
        """Starts containerd and loads the images."""
        self._write_containerd_files()
        processes.start("containerd", [*self.plane.prefix, "containerd", "--config", f"{self._folder}/containerd.toml"])
        processes.wait_for("containerd", lambda: self._ctr("version").returncode == 0, ["containerd"])
        images.write_archive(self._folder / "images.tar", pause)
        self.load_image(self._folder / "images.tar")

    def load_image(self, archive: Path) -> None:
        """Loads the images of an OCI or Docker archive into containerd."""
        self._ctr("--namespace", "k8s.io", "images", "import", "--all-platforms", str(archive)).check_returncode()

    def start(self, processes: Processes) -> None:
        """Starts kubelet, scheduler and proxy, and waits until the node is Ready and advertises its GPUs."""
        kube, kubeconfig = str(self.plane.kube), self.plane.kubeconfig
        self._write_kubelet_config()
        config = [f"--config={self._folder}/kubelet.json", f"--root-dir={self._folder}/kubelet"]
        identity = [f"--hostname-override={NAME}", f"--node-ip={NODE_ADDRESS}"]
        for name, arguments in (
            ("kubelet", [*config, *identity]),
            ("kube-scheduler", ["--leader-elect=false", "--secure-port=0"]),
            (
                "kube-proxy",
                # conntrack's limits apply to the whole machine and must not change.
                [f"--cluster-cidr={POD_RANGE}", f"--hostname-override={NAME}", "--conntrack-max-per-core=0"],
            ),
        ):
            processes.start(name, [*self.plane.prefix, kube, name, f"--kubeconfig={kubeconfig}", *arguments])
        processes.wait_for("the node", self._is_ready, ["containerd", "kubelet"])
        if self.gpus:
            self._advertise_gpus()

    def _is_ready(self) -> bool:
        path = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
        return self._kubectl("get", "node", NAME, "-o", path).stdout == "True"

    def _advertise_gpus(self) -> None:
        """Advertises GPUs as an extended resource without a device plugin, as Kubernetes documents."""
        path = "/status/capacity/" + GPU_RESOURCE.replace("/", "~1")
        patch = json.dumps([{"op": "add", "path": path, "value": str(self.gpus)}])
        self._kubectl("patch", "node", NAME, "--subresource=status", "--type=json", "-p", patch).check_returncode()

    def _kubectl(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [str(self.plane.kube), "kubectl", "--kubeconfig", str(self.plane.kubeconfig), *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    def _ctr(self, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
        command = [*self.plane.prefix, "ctr", "--address", f"{self._folder}/containerd.sock", *arguments]
        return subprocess.run(command, capture_output=True)

    def _write_containerd_files(self) -> None:
        routes = [{"dst": SERVICE_RANGE}, {"dst": f"{NODE_ADDRESS}/32", "gw": BRIDGE_ADDRESS}]
        address_management = {
            "type": "host-local",
            "dataDir": f"{self._folder}/cni-data",
            "ranges": [[{"subnet": POD_RANGE}]],
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
        (self._folder / "cni").mkdir(exist_ok=True)
        (self._folder / "cni" / "10-pods.conflist").write_text(json.dumps(network))
        default = subprocess.run(["ctr", "oci", "spec"], capture_output=True, text=True, check=True).stdout
        spec = json.loads(default)
        if self.host_mounts:
            spec["mounts"] += images.mounts()
        (self._folder / "container-spec.json").write_text(json.dumps(spec))
        (self._folder / "containerd.toml").write_text(_CONTAINERD.format(d=self._folder, pause=images.PAUSE_IMAGE))

    def _write_kubelet_config(self) -> None:
        keys = self.plane.certificates
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": NODE_ADDRESS,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": f"{keys}/ca.crt"},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": f"{keys}/kubelet.crt",
            "tlsPrivateKeyFile": f"{keys}/kubelet.key",
            "cgroupDriver": "cgroupfs",
            "failCgroupV1": False,
            "failSwapOn": False,
            "enforceNodeAllocatable": [],
            "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
            "imageGCHighThresholdPercent": 100,
            "podLogsDir": f"{self._folder}/pod-logs",
            "volumePluginDir": f"{self._folder}/volume-plugins",
            "containerRuntimeEndpoint": f"unix://{self._folder}/containerd.sock",
        }
        (self._folder / "kubelet.json").write_text(json.dumps(config, indent=1))


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
