"""The operator as its own process, the way a Deployment runs it: `python -m finetune_operator`."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import requests

from devcluster.ports import free_ports
from tests.integration.waiting import wait_for

PATIENCE_SECONDS = 60
"""How long a busy machine may take to answer, or to end the process."""


class OperatorProcess:
    """One operator at a time. It reaches the API server at `server` with `token`; its log stays in `folder`."""

    def __init__(self, folder: Path, server: str, token: str, arguments: Sequence[str] = ()) -> None:
        self.log = folder / "operator.log"
        self.exit_code: int | None = None
        """Of the process that ran last, once it has ended."""
        self._port, self._metrics_port = free_ports(2)
        self._arguments = [*self._addresses(), *arguments]
        self._kubeconfig = folder / "operator-kubeconfig"
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.log.write_text("")
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "proxy", "cluster": {"server": server}}],
            "users": [{"name": "operator", "user": {"token": token}}],
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "operator"}}],
            "current-context": "proxy",
        }
        self._kubeconfig.write_text(json.dumps(config))
        self._kubeconfig.chmod(0o600)

    @property
    def is_running(self) -> bool:
        if self._process is None:
            return False
        self.exit_code = self._process.poll()
        return self.exit_code is None

    def start(self) -> None:
        """Does nothing when it runs."""
        if self.is_running:
            return
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "finetune_operator", *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "KUBECONFIG": str(self._kubeconfig)},
            )

    def stop(self) -> int | None:
        """SIGTERM, as Kubernetes does it. Returns the exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: no chance to tidy up."""
        self._end(signal.SIGKILL)

    def probe(self, path: str) -> tuple[int, str]:
        """What the kubelet is answered: the HTTP code, 0 while nobody listens, and the text."""
        try:
            answer = requests.get(f"http://127.0.0.1:{self._port}{path}", timeout=PATIENCE_SECONDS)
        except requests.ConnectionError as error:
            return 0, str(error)
        return answer.status_code, answer.text

    def wait_until_ready(self) -> None:
        """Until it watches, as its readiness probe says."""
        wait_for("the operator to watch", lambda: self.probe("/readyz"), lambda answer: answer == (200, "ok"))

    def metric(self, name: str) -> float:
        """The value of a metric without labels, or the sum over its labels; 0 while there is none."""
        text = requests.get(f"http://127.0.0.1:{self._metrics_port}/metrics", timeout=PATIENCE_SECONDS).text
        lines = [line.rsplit(" ", 1) for line in text.splitlines()]
        return sum(float(value) for key, value in lines if key == name or key.startswith(f"{name}{{"))

    def _addresses(self) -> list[str]:
        return [
            f"--health-probe-bind-address=127.0.0.1:{self._port}",
            f"--metrics-bind-address=127.0.0.1:{self._metrics_port}",
        ]

    def resident_bytes(self) -> int:
        """Memory it holds now."""
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    def _end(self, number: signal.Signals) -> int | None:
        if self._process is None:
            return None
        if self.is_running:
            self._process.send_signal(number)
        self.exit_code = self._process.wait(PATIENCE_SECONDS)
        return self.exit_code
