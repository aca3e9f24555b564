"""A shell in which kubectl and helm speak to the demo's cluster and S3's keys are set."""

import os
import shlex
import subprocess
from pathlib import Path

from examples.demo.target import JOB, NAMESPACE, Target

HINTS = f"""\
kubectl and helm work here, in the tenant's namespace {NAMESPACE}. For example:

  kubectl get finetunejobs                      what there is (short: ftj)
  kubectl describe ftj {JOB}                  its conditions, results and events
  kubectl get pods; kubectl logs --selector finetune.dev/step=train
  kubectl explain finetunejob.spec --recursive  every field
  kubectl apply -f examples/tickets/finetunejob.yaml   after changing metadata.name and output.uri

exit or Ctrl-D leaves; the cluster stays.
"""


def open_shell(target: Target, folder: Path) -> int:
    """Runs bash until it is left. Files it needs go to `folder`. Returns its exit status."""
    environment = {
        **os.environ,
        "PATH": f"{_wrappers(target, folder / 'bin')}:{os.environ['PATH']}",
        "KUBECONFIG": str(_kubeconfig(target, folder / "kubeconfig")),
        "AWS_ENDPOINT_URL": target.endpoint,
        "AWS_REGION": target.region,
        "AWS_ACCESS_KEY_ID": target.keys.access_key,
        "AWS_SECRET_ACCESS_KEY": target.keys.secret_key,
    }
    startup = folder / "bashrc"
    startup.write_text("[ -f ~/.bashrc ] && . ~/.bashrc\nPS1='(demo) \\w\\$ '\n")
    print(HINTS, flush=True)
    return subprocess.run(["bash", "--rcfile", str(startup), "-i"], env=environment).returncode


def _wrappers(target: Target, folder: Path) -> Path:
    """kubectl and helm as programs, as the local cluster has both in one."""
    folder.mkdir(parents=True, exist_ok=True)
    if target.local:
        for tool, command in {"kubectl": target.kubectl_command, "helm": target.helm_command}.items():
            wrapper = folder / tool
            # The first two words are the program and the tool; the kubeconfig comes from the environment.
            wrapper.write_text(f'#!/bin/sh\nexec {shlex.join(command[:2])} "$@"\n')
            wrapper.chmod(0o755)
    return folder


def _kubeconfig(target: Target, path: Path) -> Path:
    """A copy of the kubeconfig with the tenant's namespace as default: nothing is changed in the original."""
    path.touch(mode=0o600)
    path.write_text(target.kubectl("config", "view", "--raw", "--minify", "--flatten"))
    target.kubectl("config", "set-context", "--current", f"--namespace={NAMESPACE}", f"--kubeconfig={path}")
    return path
