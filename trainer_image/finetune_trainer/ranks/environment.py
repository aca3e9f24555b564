"""The environment variables with which the launcher starts a rank. Does not import torch."""

from collections.abc import Mapping
from pathlib import Path

from finetune_trainer.pod.rank import Place
from finetune_trainer.pod.termination import LOG_VARIABLE

SURVIVES_GPU_ERRORS = {"TORCH_NCCL_RETHROW_CUDA_ERRORS": "0"}
"""Lets a rank report an error of its GPU. By default the watchdog of NCCL finds the error in a sum under way, and
aborts the process (pytorch#126544, pytorch#126587). Python raises the error too: at the next call of CUDA, and for an
error of NCCL itself when it waits for the sum."""


def environment(place: Place, given: Mapping[str, str], cpus: int, interface: str | None = "lo") -> dict[str, str]:
    """Returns the environment variables of a rank in addition to those of the pod, which are `given`. `cpus`: number of
    processors of the node. `interface`: network interface over which the ranks reach each other; None: gloo and
    NCCL choose one.

    Each rank sees only its own GPU. With one node all connections stay inside the pod. The ranks share the processors:
    with one thread for each processor in each rank, they would wait for each other."""
    gpus = given["CUDA_VISIBLE_DEVICES"].split(",") if "CUDA_VISIBLE_DEVICES" in given else None
    number = place.rank_of_node
    own = str(number) if gpus is None else "".join(gpus[number : number + 1])
    return {
        **place.environment,
        LOG_VARIABLE: str(log_of(place)),
        "CUDA_VISIBLE_DEVICES": own,
        **({"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface} if interface else {}),
        **SURVIVES_GPU_ERRORS,
        "OMP_NUM_THREADS": given.get("OMP_NUM_THREADS") or str(max(1, cpus // place.ranks_of_node)),
    }


def log_of(place: Place) -> Path:
    """Returns the file for the termination message of a rank."""
    return place.meeting / f"rank-{place.rank}.json"
