"""Requests that the S3 service has served and whose answer was lost, so that the library repeats them."""

from collections.abc import Callable, Iterator

import pytest

from finetune_trainer.preflight.places import check_output
from finetune_trainer.storage.job_storage import JobStorage
from tests.integration.api_proxy import S3Proxy
from tests.integration.calls import Call
from tests.unit.finetune_trainer.conftest import S3
from tests.unit.finetune_trainer.storage.test_job_storage import JOB, Place, bundle, s3_place

__all__ = ["s3_place"]


@pytest.fixture
def proxy(s3: S3) -> Iterator[S3Proxy]:
    proxy = S3Proxy(s3.endpoint)
    yield proxy
    proxy.close()


@pytest.fixture
def storage(s3_place: Place, proxy: S3Proxy) -> JobStorage:
    return s3_place.open(endpoint=proxy.address)


def writes(status: int) -> Callable[[Call], bool]:
    """Matches a write that was answered so."""
    return lambda call: (call.method, call.status) == ("PUT", status)


def test_a_conditional_write_whose_answer_was_lost_has_written(
    storage: JobStorage, s3_place: Place, proxy: S3Proxy
) -> None:
    lost = list[str]()
    proxy.after(writes(200), lambda: lost.append("answer"))
    assert storage.write_bytes(s3_place.uri("out", "manifest.json"), b"mine", if_absent=True)
    assert lost
    assert storage.read_bytes(s3_place.uri("out", "manifest.json")) == b"mine"


@pytest.mark.parametrize("is_lost", [True, False])
def test_a_conditional_write_that_was_refused_has_not_written(
    storage: JobStorage, s3_place: Place, proxy: S3Proxy, is_lost: bool
) -> None:
    """Also if the refusal was lost, or if the other one has written the same."""
    theirs = b"theirs" if is_lost else b"mine"
    s3_place.storage.write_bytes(s3_place.uri("out", "manifest.json"), theirs)
    lost = list[str]()
    if is_lost:
        proxy.after(writes(412), lambda: lost.append("answer"))
    assert not storage.write_bytes(s3_place.uri("out", "manifest.json"), b"mine", if_absent=True)
    assert bool(lost) == is_lost
    assert storage.read_bytes(s3_place.uri("out", "manifest.json")) == theirs


@pytest.mark.parametrize("status", [200, 412], ids=["first-write", "second-write"])
def test_preflight_does_not_take_a_lost_answer_for_a_missing_feature(
    storage: JobStorage, s3_place: Place, proxy: S3Proxy, status: int
) -> None:
    lost = list[str]()
    proxy.after(writes(status), lambda: lost.append("answer"))
    check_output(bundle(s3_place.folder, job=JOB), storage)
    assert lost
    assert s3_place.storage.list_folder(s3_place.uri("out")) == {}


def test_two_preflight_pods_of_a_job_do_not_disturb_each_other(
    storage: JobStorage, s3_place: Place, proxy: S3Proxy
) -> None:
    """One that counted as lost may still be at work."""
    checked = bundle(s3_place.folder, job=JOB)
    met = list[str]()

    def other() -> None:
        met.append("other")
        check_output(checked, s3_place.open())

    proxy.hold(lambda call: call.method == "PUT" and bool(proxy.calls) and proxy.calls[-1].method == "PUT", other)
    check_output(checked, storage)
    assert met
