"""Which failure an error of the file system of a claim is."""

import errno
import os

import pytest

from finetune_api.reasons import FailureReason
from finetune_trainer.storage.claims.failures import failure_of_claim
from finetune_trainer.storage.claims.own_disk import OwnDiskError
from finetune_trainer.storage.files import OUTPUT

URI = "pvc://results/team/tickets/w"
OF_THE_POD = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
OF_THE_TENANT = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EEXIST),
    *(errno.EACCES, errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV, errno.EFBIG),
}


@pytest.mark.parametrize("number", sorted(errno.errorcode), ids=errno.errorcode.get)
def test_every_error_of_the_file_system_has_a_reason(number: int) -> None:
    failure = failure_of_claim(OSError(number, os.strerror(number)), URI, OUTPUT, True)
    if number in OF_THE_POD:
        assert failure is None
        return
    assert failure is not None
    wanted = FailureReason.OUTPUT_NOT_WRITABLE if number in OF_THE_TENANT else FailureReason.STORAGE_UNAVAILABLE
    assert failure.reason is wanted
    assert URI in failure.message


def test_an_error_without_a_number_is_none_of_the_file_system() -> None:
    assert failure_of_claim(OSError("not readable"), URI, OUTPUT, True) is None


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOENT, errno.ENOSPC])
def test_an_error_of_the_pods_own_disk_is_none_of_the_volume(number: int) -> None:
    assert failure_of_claim(OwnDiskError(number, os.strerror(number)), URI, OUTPUT, True) is None
