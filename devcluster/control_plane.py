"""etcd, API server, controller-manager and scheduler: their files, flags and order."""

import json
import secrets
import subprocess
from dataclasses import dataclass
from pathlib import Path

from devcluster.namespaces import SERVICE_ADDRESS, SERVICE_RANGE
from devcluster.processes import Processes

CONTEXT = "finetune-dev"


@dataclass(frozen=True)
class ControlPlane:
    """The control plane's addresses and files. `prefix`: the words before every command, which enter the node.

    `api_server_flags`, `controller_flags`: more flags of kube-apiserver, for example of its audit log, and of
    kube-controller-manager. `more_addresses`: of further nodes, for the kubelets' certificate. `lost_after_seconds`:
    after how much silence a node is lost; None: the usual."""

    folder: Path
    kube: Path
    address: str
    port: int
    etcd_ports: tuple[int, int]
    prefix: tuple[str, ...] = ()
    api_server_flags: tuple[str, ...] = ()
    controller_flags: tuple[str, ...] = ()
    more_addresses: tuple[str, ...] = ()
    lost_after_seconds: int | None = None

    @property
    def kubeconfig(self) -> Path:
        """A kubeconfig with administrator rights, for people and for the components."""
        return self.folder / "kubeconfig"

    @property
    def certificates(self) -> Path:
        return self.folder / "certificates"

    def write_files(self) -> None:
        """Writes the certificates, the administrator's token and the kubeconfig."""
        self.certificates.mkdir(parents=True, exist_ok=True)
        addresses = sorted({self.address, "127.0.0.1", SERVICE_ADDRESS, *self.more_addresses})
        subprocess.run([str(self.kube), "certificates", str(self.certificates), *addresses], check=True)
        token = secrets.token_hex(16)
        (self.folder / "tokens.csv").write_text(f"{token},admin,admin,system:masters\n")
        (self.folder / "tokens.csv").chmod(0o600)
        cluster = {
            "server": f"https://{self.address}:{self.port}",
            "certificate-authority": str(self.certificates / "ca.crt"),
        }
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": CONTEXT, "cluster": cluster}],
            "users": [{"name": CONTEXT, "user": {"token": token}}],
            "contexts": [{"name": CONTEXT, "context": {"cluster": CONTEXT, "user": CONTEXT}}],
            "current-context": CONTEXT,
        }
        self.kubeconfig.write_text(json.dumps(config, indent=1))
        self.kubeconfig.chmod(0o600)

    def launch(self, processes: Processes) -> None:
        """Starts etcd and the API server without waiting. `finish` waits for them."""
        self._start(processes, "etcd", self._etcd())
        self.start_api_server(processes)

    def start_api_server(self, processes: Processes) -> None:
        """Starts the API server without waiting."""
        self._start(processes, "kube-apiserver", self._apiserver())

    def start_scheduler(self, processes: Processes) -> None:
        """Starts the scheduler, which only a cluster with nodes needs."""
        options = [f"--kubeconfig={self.kubeconfig}", "--leader-elect=false", "--secure-port=0"]
        self._start(processes, "kube-scheduler", options)

    def finish(self, processes: Processes) -> None:
        """Waits until the API server is ready, and starts the controller-manager."""
        processes.wait_for("the API server", self.is_ready, ["etcd", "kube-apiserver"])
        self._start(processes, "kube-controller-manager", self._controller_manager())

    def _start(self, processes: Processes, name: str, arguments: list[str]) -> None:
        processes.start(name, [*self.prefix, str(self.kube), name, *arguments])

    def is_ready(self) -> bool:
        """Returns whether the API server is ready."""
        command = [str(self.kube), "kubectl", "--kubeconfig", str(self.kubeconfig), "get", "--raw", "/readyz"]
        return subprocess.run(command, capture_output=True).returncode == 0

    def _etcd(self) -> list[str]:
        client, peer = (f"http://127.0.0.1:{port}" for port in self.etcd_ports)
        return [
            *("--data-dir", str(self.folder / "etcd"), "--unsafe-no-fsync", "--log-level", "warn"),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *(
                "--listen-peer-urls",
                peer,
                "--initial-advertise-peer-urls",
                peer,
                "--initial-cluster",
                f"default={peer}",
            ),
        ]

    def _apiserver(self) -> list[str]:
        keys = self.certificates
        return [
            f"--etcd-servers=http://127.0.0.1:{self.etcd_ports[0]}",
            f"--bind-address={'127.0.0.1' if self.address == '127.0.0.1' else '0.0.0.0'}",
            f"--advertise-address={self.address}",
            f"--secure-port={self.port}",
            *(["--endpoint-reconciler-type=none"] if self.address == "127.0.0.1" else []),
            f"--tls-cert-file={keys}/kube-apiserver.crt",
            f"--tls-private-key-file={keys}/kube-apiserver.key",
            f"--client-ca-file={keys}/ca.crt",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            "--authorization-mode=Node,RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={keys}/service-accounts.key",
            f"--service-account-signing-key-file={keys}/service-accounts.key",
            f"--token-auth-file={self.folder}/tokens.csv",
            "--allow-privileged",
            "--kubelet-preferred-address-types=InternalIP",
            f"--kubelet-certificate-authority={keys}/ca.crt",
            f"--kubelet-client-certificate={keys}/kubelet-client.crt",
            f"--kubelet-client-key={keys}/kubelet-client.key",
            *self.api_server_flags,
        ]

    def _controller_manager(self) -> list[str]:
        return [
            f"--kubeconfig={self.kubeconfig}",
            f"--root-ca-file={self.certificates}/ca.crt",
            f"--service-account-private-key-file={self.certificates}/service-accounts.key",
            "--use-service-account-credentials",
            "--leader-elect=false",
            "--secure-port=0",
            *self._patience_with_nodes(),
            *self.controller_flags,
        ]

    def _patience_with_nodes(self) -> list[str]:
        if self.lost_after_seconds is None:
            return []
        return [f"--node-monitor-grace-period={self.lost_after_seconds}s", "--node-monitor-period=2s"]
