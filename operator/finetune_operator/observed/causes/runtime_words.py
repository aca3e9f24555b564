"""Says who is at fault, from the words of a container runtime or of a registry: the GPU, the node, or the registry.

The kubelet passes the words on: in the state of a container that waits, or as the message of one that never ran."""

import re

from finetune_api.reasons import FailureReason

_GPU = re.compile(
    r"nvidia-container|nvml error|nvidia container runtime|libnvidia|libcuda|cdi device|could not select device driver|"
    r"/dev/(?:nvidia|kfd|dri)",
    re.IGNORECASE,
)
"""What a runtime says if the driver, its tools or its device files are missing or broken: for example after an upgrade
of the driver under a device plugin that runs on."""
_NODE = re.compile(
    r"deadline exceeded|cannot allocate memory|no space left on device|resource temporarily unavailable|"
    r"too many open files|input/output error|device or resource busy|connection refused|transport is closing|"
    r"ttrpc: closed|containerd\.sock|crio\.sock|failed to reserve container name",
    re.IGNORECASE,
)
"""What a runtime says if it is overloaded, restarts, or lacks memory or disk space."""
_COMMAND = re.compile(
    r"executable file not found|no such file or directory|permission denied|exec format error|not a directory|"
    r"is a directory|no command specified",
    re.IGNORECASE,
)
"""What a runtime says if the image has no such program, or the program is not for this CPU. It is the same on every
node."""
_REFUSED = re.compile(
    r"not found|unauthorized|denied|forbidden|manifest unknown|invalid reference|no match for platform|no such host|"
    r"x509",
    re.IGNORECASE,
)
"""What a registry, or a client, says about an image that does not exist, must not be pulled or has a wrong name.
Waiting does not help."""
_AWAY = re.compile(
    r"\bEOF\b|time(?:d )?out|deadline exceeded|connection re(?:set|fused)|tls handshake|broken pipe|network is "
    r"unreachable|no route to host|server misbehaving|temporary failure|toomanyrequests|too many requests|context "
    r"canceled|\b(?:429|50[0-4])\b",
    re.IGNORECASE,
)
"""What a client says if the registry or the network does not answer, or answers that it has too much to do."""
_FULL = re.compile(r"no space left on device|cannot allocate memory|input/output error", re.IGNORECASE)


def of_start(said: str, trains: bool) -> FailureReason | None:
    """Return the reason if a container was not started because of its node; None if the words do not say so.

    `trains`: whether the container is in a training pod. Only these have a GPU."""
    if _GPU.search(said):
        return FailureReason.GPU_FAULT if trains else FailureReason.NODE_FAULT
    return FailureReason.NODE_FAULT if _NODE.search(said) else None


def is_about_the_command(said: str) -> bool:
    """Whether a container was not started because its command cannot be run. Asked after `of_start`."""
    return _COMMAND.search(said) is not None


def of_pull(said: str) -> FailureReason | None:
    """Return the reason if another pull of the image may succeed; None if it fails again, or the words are unknown."""
    if _FULL.search(said):
        return FailureReason.NODE_FAULT
    if _REFUSED.search(said):
        return None
    return FailureReason.REGISTRY_UNAVAILABLE if _AWAY.search(said) else None
