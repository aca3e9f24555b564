"""Opens a shell in which kubectl, helm and s3 use the demo's cluster and its S3 service."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from examples.demo.target import JOB, NAMESPACE, ROOT, Target

HINTS = f"""\
kubectl, helm and s3 work here. The default namespace is the tenant's namespace {NAMESPACE}. For example:

  kubectl get finetunejobs                      list all jobs (short: ftj)
  kubectl describe ftj {JOB}                  show the job's conditions, results and events
  kubectl get pods; kubectl logs --selector finetune.dev/step=train
  kubectl explain finetunejob.spec --recursive  show every field

To train on your own rows, upload them to S3. Write a manifest like examples/tickets/finetunejob.yaml, with your own
name, rows, columns and output.uri. Then apply the manifest, watch the job, and download the results:

  s3 cp rows.jsonl s3://acme-data/mine/
  kubectl apply -f mine.yaml; kubectl get ftj --watch
  s3 ls s3://acme-results/                      list all results
  s3 cp s3://acme-results/mine/report.html .

Leave the shell with exit or Ctrl-D. The cluster continues to run.
"""


def open_shell(target: Target, folder: Path) -> int:
    """Runs an interactive bash. Writes the files that it needs to `folder`. Returns bash's exit status."""
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
    """Writes programs `s3`, `kubectl` and `helm` to `folder`. The local cluster has kubectl and helm in one program."""
    folder.mkdir(parents=True, exist_ok=True)
    s3 = folder / "s3"
    s3.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {sys.executable} -m examples.demo.s3 "$@"\n')
    s3.chmod(0o755)
    if target.local:
        for tool, command in {"kubectl": target.kubectl_command, "helm": target.helm_command}.items():
            wrapper = folder / tool
            # The first two words are the program and the tool. The kubeconfig is set in the environment.
            wrapper.write_text(f'#!/bin/sh\nexec {shlex.join(command[:2])} "$@"\n')
            wrapper.chmod(0o755)
    return folder


def _kubeconfig(target: Target, path: Path) -> Path:
    """Writes a copy of the kubeconfig with the tenant's namespace as default. The original does not change."""
    path.touch(mode=0o600)
    path.write_text(target.kubectl("config", "view", "--raw", "--minify", "--flatten"))
    target.kubectl("config", "set-context", "--current", f"--namespace={NAMESPACE}", f"--kubeconfig={path}")
    return path
