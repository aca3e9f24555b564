"""A step of a job as its pod runs it, without a cluster: the Job's manifest is the operator's own, and the process gets
what the kubelet would give it. The root file system is read-only, the user is not root, the environment is the image's
and the container's and nothing else, and there is no network, unless the job uses the hub. The folder data stands for
the job's storage."""

import json
import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any

from devcluster import images
from finetune_api import names
from finetune_api.bundle import Bundle, TerminationMessage
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_api.status.job import FineTuneJobStatus
from finetune_operator.decisions.objects import bundles, children
from finetune_operator.observed.facts.pods import Object
from finetune_operator.observed.world import EarlierJob, World
from finetune_trainer.handover.prepared import Prepared
from finetune_trainer.storage.job_storage import open_storage
from tests.unit.finetune_operator.worlds import fresh
from tests.unit.finetune_trainer.preflight_runs import read

DATA = "/data"
"""Where a pod finds what a job would have in S3."""
LOG = "/dev/termination-log"
DEVICES = ("null", "zero", "full", "random", "urandom")
PROFILE: dict[str, Any] = {
    "trainer": {"image": images.TRAINER_IMAGE, "allowCPU": True},
    "gpuTypes": [{"name": "any"}],
    "storages": [{"buckets": ["*"]}],
}
SECONDS = 300
POD_UID = "5c0f7a52-2f0e-4b7e-9d8e-0a4f6c3b1d20"
"""What the kubelet would give for the pod's own uid."""


@dataclass(frozen=True)
class Ended:
    """What is left of a pod."""

    code: int
    message: TerminationMessage
    log: str
    peers: tuple[TerminationMessage, ...] = ()
    """How the pods on the other nodes have ended."""

    @property
    def statuses(self) -> list[FineTuneJobStatus]:
        """Every status the pod would have applied, in order: without a cluster it prints them."""
        said = (line.partition(": {") for line in self.log.splitlines())
        applied = ("{" + text for manager, _, text in said if manager == "preflight" or manager.startswith("attempt-"))
        return [FineTuneJobStatus.model_validate_json(text) for text in applied]

    @property
    def status(self) -> FineTuneJobStatus:
        """The last of them."""
        return self.statuses[-1]


class Pods:
    """Runs pods over one folder, which they see as DATA."""

    def __init__(self, folder: Path, hub: dict[str, Any] | None = None, token: str = "") -> None:
        """`hub`: spec.hub of the profile. `token`: the value in the Secret of the token."""
        self._profile = FineTuneProfileSpec.model_validate(PROFILE | ({"hub": hub} if hub else {}))
        self._token = token
        self.data = folder / "data"
        self._folder = folder
        self.data.mkdir()

    def preflight(self, spec: dict[str, Any], token: str | None = None) -> Ended:
        """Checks the job of this spec, whose URIs are paths below DATA or on the hub. `token`: another value in the
        Secret of the token."""
        wish = FineTuneJobSpec.model_validate(spec)
        return self._run(children.preflight_job(world_of(wish), wish, self._profile), wish, token=token)

    def train(self, spec: dict[str, Any], stop_at: str = "") -> Ended:
        """The first attempt at a job whose preflight has succeeded. It gets SIGTERM after the first line of its log
        that begins with `stop_at`, if that is given."""
        wish = FineTuneJobSpec.model_validate(spec)
        return self._run(
            children.attempt_job(world_of(wish), wish, self._profile, children.Try(1, self._profile.gpu_types[0])),
            wish,
            stop_at,
        )

    def prepared(self, spec: dict[str, Any]) -> Prepared:
        """What the preflight left for the attempts."""
        bundle = Bundle.model_validate_json(json.dumps({"spec": spec}).replace(f'"{DATA}/', f'"{self.data}/'))
        return read(bundle, open_storage(bundle))

    def _run(self, job: Object, spec: FineTuneJobSpec, stop_at: str = "", token: str | None = None) -> Ended:
        bundle = json.loads(bundles.missing(world_of(spec), spec, self._profile)[0]["data"][names.BUNDLE_KEY])
        del bundle["job"]  # so that the status goes to the log: there is no API server
        pod = job["spec"]["template"]["spec"]
        indices, user = range(job["spec"].get("completions", 1)), pod["securityContext"]["runAsUser"]
        (self._folder / "token").write_text(self._token if token is None else token)
        scripts = [self._script(pod, json.dumps(bundle), index) for index in indices]
        ends = [self._folder / f"termination-log-{index}" for index in indices]
        for path in (*ends, self.data, *self.data.rglob("*")):
            os.chown(path, user, user)
        variables = {item["name"]: _value(item) for item in pod["containers"][0]["env"]}
        del variables[names.BUNDLE_DIGEST_VARIABLE]  # that of the bundle with its job
        # Without HF_HUB_OFFLINE the hub of the tests is asked, which is on this machine.
        network = ["--net"] if "HF_HUB_OFFLINE" in variables else []
        process = subprocess.Popen(
            ["unshare", "--mount", *network, "sh", "-c", scripts[0] if len(scripts) == 1 else self._all(scripts)],
            env=images.environment() | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        log = _log(process, stop_at)
        assert all(end.read_text() for end in ends), log
        said = [TerminationMessage.model_validate_json(end.read_bytes()) for end in ends]
        return Ended(process.returncode, said[0], log, tuple(said[1:]))

    def _all(self, scripts: list[str]) -> str:
        """Runs the pods of all nodes, in one network. Their logs are one log."""
        lines = ["ip link set lo up"]
        for index, script in reversed(list(enumerate(scripts))):
            run = f"{names.INDEX_VARIABLE}={index} unshare --mount sh -c {shlex.quote(script)}"
            lines.append(f"{run} &" if index else run)
        return "\n".join([*lines, "code=$?", "wait", "exit $code"])

    def _script(self, pod: Object, bundle: str, index: int) -> str:
        """Mounts the container's file system, in a namespace of its own that ends with the process, and becomes it."""
        (container,), user = pod["containers"], pod["securityContext"]["runAsUser"]
        root = self._folder / "root"
        root.mkdir(exist_ok=True)
        for name, content in (("bundle.json", bundle), (f"termination-log-{index}", "")):
            (self._folder / name).write_text(content)
        # Like every pod, it has a loopback interface and, in this case, no other one.
        lines = ["set -eu", "ip link set lo up", f"mount -t tmpfs none {root}"]
        lines += [f"ln -s usr/{name} {root}/{name}" for name in ("bin", "lib", "lib64", "sbin")]
        for mount in images.mounts():
            lines += _bind(mount["source"], f"{root}{mount['destination']}", read_only=True)
        lines += _bind("/proc", f"{root}/proc", read_only=True)
        lines += _bind(str(self.data), f"{root}{DATA}")
        for device in DEVICES:
            lines += _bind(f"/dev/{device}", f"{root}/dev/{device}")
        lines += _bind(str(self._folder / f"termination-log-{index}"), f"{root}{LOG}")
        if "subdomain" in pod:  # what the DNS of the cluster knows
            first = container["args"][container["args"].index("--first-node") + 1].partition(":")[0]
            lines += [f"mkdir -p {root}/etc", f"echo 127.0.0.1 {first} >{root}/etc/hosts"]
        for volume in container["volumeMounts"]:
            place = f"{root}{volume['mountPath']}"
            if volume["name"] == "bundle":
                lines += _bind(str(self._folder / "bundle.json"), f"{place}/{names.BUNDLE_KEY}", read_only=True)
            elif volume["mountPath"] == names.HUB_FOLDER:
                lines += _bind(str(self._folder / "token"), f"{place}/{names.HUB_TOKEN}", read_only=True)
            else:
                lines += [f"mkdir -p {place}", f"mount -t tmpfs -o mode=1777 none {place}"]
        lines.append(f"mount -o remount,ro {root}")
        command = shlex.join([images.python(), "-m", "finetune_trainer", *container["args"]])
        lines.append(f"exec {shutil.which('chroot')} --userspec={user}:{user} {root} {command}")
        return "\n".join(lines)


def world_of(spec: FineTuneJobSpec) -> World:
    """A job. The one that it resumes from, if any, has failed, and its results would be in the folder of its name."""
    name = spec.resume_from.name if spec.resume_from else None
    return fresh(spec=spec, earlier_job=EarlierJob("local", f"{DATA}/out/{name}", "Failed") if name else None)


def _log(process: subprocess.Popen[str], stop_at: str) -> str:
    """The whole log of a process, which gets SIGTERM after the first line that begins with `stop_at`, if given."""
    log, timeout = "", Timer(SECONDS, process.kill)
    timeout.start()
    try:
        for line in process.stdout or ():
            if stop_at and line.startswith(stop_at):
                process.terminate()
                stop_at = ""
            log += line
        process.wait()
    finally:
        timeout.cancel()
    return log


def _bind(source: str, to: str, read_only: bool = False) -> list[str]:
    """Shell lines that show `source`, a folder or a file, as `to`."""
    made = f"mkdir -p {to}" if Path(source).is_dir() else f"mkdir -p {Path(to).parent}; : > {to}"
    return [made, f"mount --rbind {source} {to}", *([f"mount -o remount,bind,ro {to}"] if read_only else [])]


def _value(item: Object) -> str:
    """Returns the value of an environment variable, which may be a field of the pod."""
    if "value" in item:
        return str(item["value"])
    return {"metadata.uid": POD_UID, "spec.nodeName": "node"}[item["valueFrom"]["fieldRef"]["fieldPath"]]
