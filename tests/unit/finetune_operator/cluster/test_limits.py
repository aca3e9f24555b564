"""The limit of requests: so many at once, so many a second on average."""

import pytest

from finetune_operator.cluster import limits
from finetune_operator.cluster.limits import Bucket


def test_requests_beyond_the_burst_wait_for_their_share_of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now, slept = [100.0], list[float]()
    monkeypatch.setattr(limits.time, "monotonic", lambda: now[0])
    bucket = Bucket(qps=10, burst=3, sleep=slept.append)
    for _ in range(5):
        bucket.take()
    assert slept == pytest.approx([0.1, 0.2])
    now[0] += 60
    for _ in range(3):
        bucket.take()
    assert len(slept) == 2, "a pause saves up one burst and no more"
    bucket.take()
    assert slept[2] == pytest.approx(0.1)
