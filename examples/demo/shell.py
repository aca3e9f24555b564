"""A shell in which kubectl, helm and s3 speak to the demo's cluster and its S3."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from examples.demo.target import JOB, NAMESPACE, ROOT, Target

HINTS = f"""\
kubectl, helm and s3 work here, in the tenant's namespace {NAMESPACE}. For example:

  kubectl get finetunejobs                      what there is (short: ftj)
  kubectl describe ftj {JOB}                  its conditions, results and events
  kubectl get pods; kubectl logs --selector finetune.dev/step=train
  kubectl explain finetunejob.spec --recursive  every field

Rows of your own: put them into S3, write a manifest like examples/tickets/finetunejob.yaml (with your own name, rows,
columns and output.uri), apply it, watch it, fetch what it made.

  s3 cp rows.jsonl s3://acme-data/mine/
  kubectl apply -f mine.yaml; kubectl get ftj --watch
  s3 cp s3://acme-results/mine/report.html .    s3 ls s3://acme-results/ lists what there is

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
    """s3 as a program; and kubectl and helm, as the local cluster has both in one."""
    folder.mkdir(parents=True, exist_ok=True)
    s3 = folder / "s3"
    s3.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {sys.executable} -m examples.demo.s3 "$@"\n')
    s3.chmod(0o755)
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
