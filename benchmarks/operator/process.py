"""The operator as its own process, as a Deployment runs it: `python -m finetune_operator`."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import aiohttp

from devcluster.ports import free_ports

STOP_TIMEOUT_SECONDS = 20
_TICKS = os.sysconf("SC_CLK_TCK")
IDLE_WINDOW_SECONDS = 3.0
IDLE_SHARE = 0.05
"""The operator is idle if it uses at most this share of a core for `IDLE_WINDOW_SECONDS`."""


class EndedError(Exception):
    """The operator ended while it was measured. The message names its log."""


class OperatorProcess:
    """One operator at a time. Its log is FOLDER/operator.log."""

    def __init__(self, folder: Path, server: str, authority: Path, token: str) -> None:
        self._log = folder / "operator.log"
        self._log.write_text("")
        self._kubeconfig = folder / "operator-kubeconfig"
        cluster = {"server": server, "certificate-authority": str(authority)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "benchmark", "cluster": cluster}],
            "users": [{"name": "operator", "user": {"token": token}}],
            "contexts": [{"name": "benchmark", "context": {"cluster": "benchmark", "user": "operator"}}],
            "current-context": "benchmark",
        }
        self._kubeconfig.write_text(json.dumps(config))
        self._kubeconfig.chmod(0o600)
        self._process: subprocess.Popen[bytes] | None = None
        self._address = ""
        self.started = 0.0
        """When the process was started, in seconds of time.monotonic."""

    def start(self) -> None:
        """Starts the process without waiting."""
        self._address = f"127.0.0.1:{free_ports(1)[0]}"
        self.started = time.monotonic()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "finetune_operator", f"--health-probe-bind-address={self._address}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "KUBECONFIG": str(self._kubeconfig)},
            )

    def stop(self) -> None:
        """Ends the process with SIGTERM, as Kubernetes does it, and with SIGKILL if this takes too long."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    async def ready(self, patience: float = 600) -> None:
        """Waits until /readyz answers 200. Raises EndedError, or TimeoutError after `patience` seconds."""
        async with asyncio.timeout(patience), aiohttp.ClientSession() as session:
            while not await self._is_ready(session):
                self.require_alive()
                await asyncio.sleep(0.05)

    async def _is_ready(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get(f"http://{self._address}/readyz") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    async def steady(self, patience: float = 600) -> float:
        """Waits until the process is ready and idle. Returns the time.monotonic of the begin of the idleness."""
        await self.ready(patience)
        async with asyncio.timeout(patience):
            while True:
                begin, used = time.monotonic(), self.cpu_seconds()
                while self.cpu_seconds() - used <= IDLE_SHARE * IDLE_WINDOW_SECONDS:
                    if time.monotonic() - begin > IDLE_WINDOW_SECONDS:
                        return begin
                    await asyncio.sleep(0.1)

    def cpu_seconds(self) -> float:
        """Processor time of the process so far, of all its threads."""
        fields = self._read("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def resident_mib(self, peak: bool = False) -> float:
        """Memory of the process now, or its highest value so far."""
        return int(self._read("status").split("VmHWM:" if peak else "VmRSS:")[1].split()[0]) / 1024

    def require_alive(self) -> None:
        """Raises EndedError if the process has ended."""
        if self._process is None or self._process.poll() is not None:
            code = self._process.returncode if self._process else None
            raise EndedError(f"The operator ended with exit code {code}. Its log is {self._log}.")

    def _read(self, name: str) -> str:
        self.require_alive()
        assert self._process is not None
        return Path(f"/proc/{self._process.pid}/{name}").read_text()
