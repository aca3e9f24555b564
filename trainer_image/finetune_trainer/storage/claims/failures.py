"""What an error of the volume of a PersistentVolumeClaim means for the job."""

import errno
import os

from finetune_api import claims
from finetune_api.reasons import FailureReason
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.storage.claims.own_disk import OwnDiskError
from finetune_trainer.storage.claims.paths import NoFileError, NotMountedError, NotUnicodeError, OutsideError
from finetune_trainer.storage.claims.writes import FullError
from finetune_trainer.storage.files import OUTPUT, Place

_NO_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
_OF_THE_POD = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""What has no more files or memory is the pod or its node."""
_UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV}
"""What some file systems over an object storage answer when a file is renamed."""


def failure_of_claim(error: Exception, uri: str, place: Place, in_a_pod: bool) -> TrainerFailure | None:
    """Returns the failure for an error, or None if the error does not come from the volume."""
    found = claims.split(uri)
    assert found
    claim = f"PersistentVolumeClaim {found[0]}"
    if isinstance(error, NotMountedError):
        return _not_mounted(claim, uri, in_a_pod)
    if isinstance(error, OutsideError):
        return TrainerFailure(
            place.missing,
            f"{uri} is, or contains, a symbolic link that leads out of the volume of {claim}.",
            "Replace the link by the file, or by a relative link to a place in the same volume.",
        )
    if isinstance(error, FullError):
        return TrainerFailure(
            FailureReason.DISK_FULL,
            f"The volume of {claim} has no space left for {uri}.",
            "Free space in the volume, or enlarge the claim.",
        )
    if isinstance(error, NotUnicodeError):
        shown = uri.encode(errors="backslashreplace").decode()
        return TrainerFailure(place.missing, f"The name of {shown} is not UTF-8.", "Rename the file.")
    if isinstance(error, NoFileError):
        return TrainerFailure(place.missing, f"{uri} is not a regular file.")
    if not isinstance(error, OSError) or isinstance(error, OwnDiskError):
        return None
    return None if error.errno is None or error.errno in _OF_THE_POD else _of_the_system(error, uri, place, claim)


def read_only(failure: TrainerFailure) -> TrainerFailure | None:
    """Returns what `failure` means if it is the first time that the job writes to the volume, and the volume is
    read-only; otherwise None. Later, a kernel has turned the volume read-only after an error of its disk, and another
    pod finds it as it was."""
    if not isinstance(failure.__cause__, OSError) or failure.__cause__.errno != errno.EROFS:
        return None
    return TrainerFailure(
        FailureReason.OUTPUT_NOT_WRITABLE,
        "The volume of spec.output.uri is read-only.",
        "Use a claim with a volume that can be written, with access mode ReadWriteMany.",
    )


def _of_the_system(error: OSError, uri: str, place: Place, claim: str) -> TrainerFailure:
    """Returns the failure for an error of the file system. It is one of the storage unless the file, the permission or
    the kind of the file system is the cause: file systems of networks answer with any number."""
    if error.errno in _NO_FILE:
        return TrainerFailure(place.missing, f"There is no file {uri}.")
    if error.errno == errno.EEXIST:
        return TrainerFailure(place.denied, f"{uri} cannot be written, because a folder in it is a file.")
    if error.errno == errno.EFBIG:
        return TrainerFailure(
            place.denied,
            f"The file system of the volume of {claim} has no files as large as {uri} ({error.strerror}).",
            "Use a claim with a file system for larger files, or an s3:// URI.",
        )
    if error.errno in _UNSUPPORTED and place is OUTPUT:
        return TrainerFailure(
            place.denied,
            f"The file system of the volume of {claim} cannot rename files, so {uri} cannot be written "
            f"({error.strerror}).",
            "Use a claim with a file system that can rename and replace files, or an s3:// URI.",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return TrainerFailure(
            place.denied,
            f"The volume of {claim} does not allow user {os.getuid()} of the pod to use {uri} ({error.strerror}).",
            f"Give this user, or the group {os.getgid()}, the permission for the file and its folders.",
        )
    return TrainerFailure(
        FailureReason.STORAGE_UNAVAILABLE,
        f"The volume of {claim} failed while {uri} was used ({error.strerror}).",
        f"Check the storage behind {claim}.",
    )


def _not_mounted(claim: str, uri: str, in_a_pod: bool) -> TrainerFailure:
    if in_a_pod:
        return TrainerFailure(
            FailureReason.STORAGE_UNAVAILABLE, f"{claim} is not mounted in this pod, so {uri} cannot be used."
        )
    return TrainerFailure(
        FailureReason.SPEC_INVALID,
        f"{uri} is in {claim}, which is mounted only in pods.",
        "Outside Kubernetes, use the local path of the files instead.",
    )
