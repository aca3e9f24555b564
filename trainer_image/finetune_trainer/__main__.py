"""`python -m finetune_trainer {preflight,fetch,train,cleanup} BUNDLE`: runs a step of a job, reports how it ended."""

import os
import signal

if __name__ == "__main__":
    # Until the libraries are loaded there is nothing to save. The first process of a container would ignore the signal.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(33))  # the code of Preempted

import argparse
import gc
import hashlib
import logging
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from finetune_api.bundle import Bundle, TerminationMessage
from finetune_api.names import (
    BUNDLE_DIGEST_VARIABLE,
    CACHE_FOLDER,
    CLAIM_FOLDER,
    CLEANUP,
    FETCH,
    GPU_TYPE_VARIABLE,
    INDEX_VARIABLE,
    NODE_NAME_VARIABLE,
)
from finetune_api.reasons import FAILURES, SUPERSEDED_EXIT_CODE, FailureReason, sentence
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.method import MethodType
from finetune_api.spec.training import Optimizer
from finetune_api.status.job import PREFLIGHT_MANAGER, attempt_manager
from finetune_trainer.pod.failure import PeerFailed, Superseded, TrainerFailure
from finetune_trainer.pod.liveness.heartbeat import phase, quiet_work
from finetune_trainer.pod.liveness.pulse import START_SECONDS
from finetune_trainer.pod.liveness.watchdog import watched
from finetune_trainer.pod.rank import is_first, place
from finetune_trainer.pod.status.status_writer import StatusWriter
from finetune_trainer.pod.termination import (
    failure_after_stop,
    handle_sigterm,
    write_failure,
    write_termination_message,
)
from finetune_trainer.ranks.launcher import command_of, launch
from finetune_trainer.ranks.nodes import Node
from finetune_trainer.ranks.peers import handle_failed_peer
from finetune_trainer.storage.job_storage import open_storage

ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""Environment variables with settings of torch's allocator. Torch reads the last two first."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one step of a job. Returns the exit code: 0, the failure's exit code in `finetune_api.reasons`, or
    SUPERSEDED_EXIT_CODE if the pod was replaced."""
    options = _options(arguments)
    handle_sigterm()
    if place().ranks > 1:
        handle_failed_peer()
    try:
        bundle = read_bundle(options.bundle)
        here, gpus = _node(options), bundle.spec.compute.gpus_per_node
        if options.step == "train" and place().ranks == 1 and gpus * here.nodes > 1:
            return launch(gpus, command_of(sys.argv[1:] if arguments is None else arguments), here)
        message = _run(options, bundle)
    except Superseded as end:
        write_termination_message(TerminationMessage(reason="Superseded", message=f"Stopped: {end}."))
        print(f"Stopped: {end}.", file=sys.stderr)
        return SUPERSEDED_EXIT_CODE
    except BaseException as error:
        return _fail(error)
    write_termination_message(TerminationMessage(reason="Succeeded", message=message))
    print(message)
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m finetune_trainer", description=__doc__)
    parser.add_argument("step", choices=["preflight", FETCH, "train", CLEANUP])
    parser.add_argument("bundle", type=Path, help="JSON file with the job's spec, see finetune_api.bundle")
    parser.add_argument("--attempt", type=int, default=1, help="number of the training attempt, from 1")
    parser.add_argument(
        "--halvings",
        type=int,
        default=0,
        help="how often the micro-batches are halved: once for each earlier attempt that ran out of GPU memory",
    )
    parser.add_argument("--nodes", type=int, default=1, help="number of nodes of the training, with one pod on each")
    parser.add_argument("--first-node", metavar="HOST:PORT", help="where the pods of several nodes meet: the first pod")
    parser.add_argument(
        "--claims", metavar="FOLDER", default=CLAIM_FOLDER, help="has the volumes of PersistentVolumeClaims, by name"
    )
    parser.add_argument("--cache-bytes", type=int, help="how many bytes the cache of models may have, for fetch")
    return parser.parse_args(arguments)


def _node(options: argparse.Namespace) -> Node:
    """Returns the node of this pod. The pod's index is in the environment, see names.INDEX_VARIABLE."""
    if options.nodes == 1:
        return Node()
    host, _, port = options.first_node.rpartition(":")
    name = os.environ.get(NODE_NAME_VARIABLE, "")
    return Node(int(os.environ[INDEX_VARIABLE]), options.nodes, host.strip("[]"), int(port), name)


def _run(options: argparse.Namespace, bundle: Bundle) -> str:
    """Runs the step. Returns the sentence for the termination message."""
    step, attempt = options.step, options.attempt
    storage = open_storage(bundle, claims_dir=options.claims)
    if step in (CLEANUP, FETCH) or (step == "preflight" and bundle.spec.dataset.deduplicate.sentence_model is None):
        _hide_torch()
    else:
        wait_asleep()
        grow_segments()
        _hide_bitsandbytes(bundle.spec)
        _quieten_libraries()
    if step == CLEANUP:
        from finetune_trainer.handover.cleanup import cleanup

        return cleanup(bundle, storage)
    if step == FETCH:
        from finetune_trainer.base.cache.model_cache import ModelCache
        from finetune_trainer.handover.fetch import fetch

        with watched(bundle.spec.policy.stall_timeout_seconds, write_failure):
            return fetch(bundle, storage, ModelCache(Path(CACHE_FOLDER), options.cache_bytes))
    stall = bundle.spec.policy.stall_timeout_seconds
    if step == "preflight":
        with _imports(stall):
            from finetune_trainer.preflight.recipe import preflight, tell_stall
            from finetune_trainer.preflight.rehearsal import rehearse_apart

        status = StatusWriter(bundle.job, PREFLIGHT_MANAGER)
        with watched(stall, lambda failure: tell_stall(failure, status)):
            return preflight(bundle, storage, status, rehearse_apart)
    with _imports(stall):
        from finetune_trainer.ranks.group import join
        from finetune_trainer.train.recipe import train
        from finetune_trainer.train.telling import tell_failure

    # Rank 0 alone writes the status. The other ranks print theirs, and nobody reads it.
    writer = StatusWriter(bundle.job if is_first() else None, attempt_manager(attempt))
    with watched(stall, lambda failure: tell_failure(failure, writer)):
        join(place())
        return train(bundle.on(os.environ.get(GPU_TYPE_VARIABLE)), storage, writer, attempt, options.halvings)


def read_bundle(path: Path, environment: Mapping[str, str] = os.environ) -> Bundle:
    """Reads the bundle from a file. Ignores fields of a later operator.

    Raises TrainerFailure SpecInvalid with up to five wrong fields, or if the operator wrote another bundle."""
    try:
        content = path.read_bytes()
        _require_own(content, environment.get(BUNDLE_DIGEST_VARIABLE))
        return Bundle.model_validate_json(content, extra="ignore")
    except FileNotFoundError as error:
        raise TrainerFailure(FailureReason.SPEC_INVALID, f"The bundle {path} does not exist.") from error
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, e['loc'])) or 'bundle'}: {e['msg']}" for e in error.errors()[:5]]
        raise TrainerFailure(
            FailureReason.SPEC_INVALID,
            f"{'; '.join(wrong)}.",
            "Correct the field. If the API server accepts it, the trainer is older than the operator: update "
            "spec.trainer.image of the FineTuneProfile.",
        ) from error


def _require_own(content: bytes, digest: str | None) -> None:
    """Raises TrainerFailure SpecInvalid if the bundle has another digest than the operator gave to the pod.

    The bundle says where the hub is, so another one could send the hub's token to anybody. An operator of an earlier
    version gives no digest."""
    if digest and hashlib.sha256(content).hexdigest() != digest:
        raise TrainerFailure(
            FailureReason.SPEC_INVALID,
            "The ConfigMap with the input of the job's pods was replaced before the pod started. The operator did not "
            "write its content, so the pod did not use it.",
            "Do not create or replace this ConfigMap.",
        )


def _hide_torch() -> None:
    """Prevents Transformers from importing torch. The import takes 4 s and 600 MB, and a tokenizer does not need torch.

    Transformers looks for torch only once in a process, so this cannot be undone. A preflight that runs a sentence
    model must not call it."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    sys.modules["torch"] = None  # type: ignore[assignment]


@contextmanager
def _imports(stall: float | None) -> Iterator[None]:
    """Imports the libraries inside. If that does not end within START_SECONDS, or within `stall` if it is longer, the
    process ends with TrainingStalled: a library may look for a driver that does not answer.

    It imports without the garbage collector, which would look through the million objects of the libraries again and
    again. This takes a second of eight. Afterwards the collector never looks at these objects."""
    # Their order matters: the first fuse of `watched` allows what `quiet_work` says.
    with quiet_work(START_SECONDS), watched(stall, write_failure):
        phase("importing the libraries")
        gc.disable()
        try:
            yield
        finally:
            gc.freeze()
            gc.enable()
    phase("starting")


def _hide_bitsandbytes(spec: FineTuneJobSpec) -> None:
    """Prevents PEFT from importing bitsandbytes where nothing needs it. The import takes more than a second, and the
    GPU waits meanwhile. Auto may turn out to be QLoRA."""
    if spec.method.type in (MethodType.AUTO, MethodType.QLORA) or spec.training.optimizer is not Optimizer.ADAMW:
        return
    sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]


def wait_asleep() -> None:
    """Makes OpenMP's threads sleep while they wait for each other. By default they spin.

    On a CPU that other processes use too, a spinning thread takes time from the thread it waits for, and a step takes
    ten times as long. OpenMP reads the variable once, when torch is imported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def grow_segments() -> None:
    """Lets torch's allocator grow its blocks of GPU memory. Otherwise packed micro-batches, which are never equally
    long, leave gaps, and a step runs out of memory although enough is free.

    A setting of the platform has precedence, under any of the names that torch knows. The allocator reads them once,
    when it is first used. Pinned memory is not concerned, and nor are the buffers of NCCL."""
    if not any(name in os.environ for name in ALLOCATOR):
        os.environ[ALLOCATOR[0]] = "expandable_segments:True"


def _quieten_libraries() -> None:
    """Keeps messages that do not concern the job out of its log: progress bars, hints on other kernels,
    deprecations."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def _fail(error: BaseException) -> int:
    failure = failure_after_stop(error)
    has_printed = isinstance(error, PeerFailed)  # the rank that failed
    if failure is not error and not has_printed:
        traceback.print_exception(error)
    write_failure(failure)
    if not has_printed:
        print(f"{failure.reason}: {sentence(failure.reason, failure.for_the_operator)}", file=sys.stderr)
    # Another rank can have failed for a reason without an exit code, because a signal ended it.
    return FAILURES[failure.reason].exit_code or FAILURES[FailureReason.PEER_LOST].exit_code


def end(code: int) -> NoReturn:
    """Ends the process at once. Threads of an upload that does not answer must not use up the grace period, or hold a
    GPU."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    end(main())
