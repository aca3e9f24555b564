"""Shows the last log lines of the part that failed."""

from devcluster import ClusterError
from examples.demo.target import JOB, SYSTEM_NAMESPACE, Target
from finetune_api.names import LABEL_JOB_NAME, LABEL_STEP
from finetune_api.status.job import FineTuneJobStatus

LOG_LINES = 15


def failing_log(target: Target, status: FineTuneJobStatus) -> str:
    """Returns the end of the last pod's log. If there is no such log, returns the end of the operator's log."""
    step = "train" if status.attempts else "preflight"
    selector = f"{LABEL_JOB_NAME}={JOB},{LABEL_STEP}={step}"
    try:
        text = target.tenant("logs", "--selector", selector, f"--tail={LOG_LINES}")
    except ClusterError as error:
        text = str(error)
    if text.strip() and not text.startswith("No resources found"):
        return f"The end of the {step} pod's log:\n{_indented(text)}"
    return operator_log(target)


def operator_log(target: Target) -> str:
    """Returns the state of the operator's pods and the end of their log."""
    parts = []
    for what, arguments in {
        "The operator's pods": ("get", "pods"),
        "The end of the operator's log": (
            "logs",
            "--selector=app.kubernetes.io/name=finetune-operator",
            f"--tail={LOG_LINES}",
        ),
    }.items():
        try:
            text = target.kubectl("--namespace", SYSTEM_NAMESPACE, *arguments)
        except ClusterError as error:
            text = str(error)
        parts.append(f"{what}:\n{_indented(text)}")
    return "\n".join(parts)


def _indented(text: str) -> str:
    return "\n".join(f"  {line[:300]}" for line in text.splitlines()[-LOG_LINES:]) or "  (empty)"
