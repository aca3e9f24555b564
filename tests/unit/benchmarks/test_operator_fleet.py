"""The simulation of many jobs on several clusters."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.operator.fleet import (
    CORE,
    ETCD,
    GIB,
    KUBERNETES,
    MEASURED,
    PODS,
    Measured,
    Need,
    burst_table,
    child_jobs,
    ends_table,
    etcd_bytes,
    live_table,
    most,
    needs,
    report_cores,
    restart,
    seconds_per_job,
    verdict,
)

arrivals = st.lists(st.floats(0, 1000), max_size=60).map(sorted)
clusters = st.integers(1, 20)
seconds = st.floats(0.001, 50)


@given(arrivals, clusters, seconds)
def test_every_job_gets_its_child_job_once_and_not_before_its_cluster_could_make_it(
    arrivals: list[float], clusters: int, seconds: float
) -> None:
    done = child_jobs(arrivals, clusters, seconds)
    assert len(done) == len(arrivals)
    assert all(end >= arrival + seconds for arrival, end in zip(arrivals, done, strict=True))
    in_order = sorted(done)
    later = in_order[clusters:]  # a cluster makes one at a time, so of clusters + 1 child Jobs two are from the same
    assert all(last - first >= seconds * (1 - 1e-9) for first, last in zip(in_order, later, strict=False))


@given(arrivals, clusters, seconds)
def test_twice_the_clusters_are_never_slower_for_any_job(arrivals: list[float], clusters: int, seconds: float) -> None:
    few, many = child_jobs(arrivals, clusters, seconds), child_jobs(arrivals, 2 * clusters, seconds)
    assert all(b <= a for a, b in zip(few, many, strict=True))


def test_a_lone_job_waits_for_its_own_child_job_only() -> None:
    assert child_jobs([5.0], 3, 0.5) == [5.5]


def test_one_cluster_is_as_fast_as_the_operator_that_was_measured() -> None:
    """91 child Jobs per second with 1,000 jobs, from the same run as the constants of the model."""
    done = child_jobs([0.0] * 1000, 1, seconds_per_job())
    assert 1000 / done[-1] == pytest.approx(91, rel=0.1)


def test_a_faster_api_server_helps_until_the_core_of_the_operator_is_the_limit() -> None:
    assert seconds_per_job(Measured(bare_jobs_per_second=1e9, cores=64)) == MEASURED.operator_ms / 1000


@pytest.mark.parametrize(
    ("jobs", "expected"), [(0, (1, 100)), (500, (2, 200)), (1000, (3, 300)), (5500, (12, 750)), (19_000, (39, 2100))]
)
def test_a_restart_follows_the_measured_lines_and_extends_the_last_one(
    jobs: int, expected: tuple[float, float]
) -> None:
    lines = ((0, 1.0, 100.0), (1000, 3.0, 300.0), (10_000, 21.0, 1200.0))
    assert restart(jobs, Measured(restarts=lines)) == pytest.approx(expected)


def test_etcd_stores_the_job_and_its_versions_of_two_compaction_intervals() -> None:
    measured = Measured(job_bytes=30_000, report_bytes=10_000, report_seconds=10)
    assert etcd_bytes(2, 300, measured) == 2 * (30_000 + 60 * 10_000)


def test_the_control_plane_needs_cores_for_the_writes_of_reports() -> None:
    measured = Measured(cores=2, bare_jobs_per_second=100, bare_writes_per_job=3, report_seconds=10)
    assert report_cores(3000, measured) == pytest.approx(2)


def test_the_verdict_names_the_limit_that_is_exceeded_most() -> None:
    assert verdict([Need("a", 1, 1), Need("b", 0.5, 1)]) == "fits"
    assert verdict([Need("a", 2, 1), Need("b", 9, 3)]) == "b: 3.0 times its limit"


@pytest.mark.parametrize("what", [ETCD, CORE, PODS])
def test_one_job_more_than_the_most_does_not_fit(what: str) -> None:
    jobs = most(what, 2 * GIB, KUBERNETES.compaction_seconds)
    shares = [
        next(need.share for need in needs(count, 2 * GIB, KUBERNETES.compaction_seconds) if need.what == what)
        for count in (jobs, jobs + 1)
    ]
    assert shares[0] <= 1 < shares[1]


def test_the_tables_have_a_line_for_each_number_of_clusters_and_no_ragged_line() -> None:
    for table in (burst_table(100, [1, 4]), live_table(100, [1, 4])):
        lines = list(table)
        assert len({line.count("|") for line in lines}) == 1
        assert [line.split("|")[1].strip() for line in lines[2:]] == ["1", "4"]


def test_the_docs_have_the_tables_of_the_simulation() -> None:
    """If this fails, copy the tables of `python -m benchmarks.operator.fleet` to docs/scale.md, and read its text."""
    page = Path(__file__).parents[3].joinpath("docs", "scale.md").read_text()
    clusters = [1, 2, 5, 10, 20]
    for table in (burst_table(100_000, clusters), live_table(100_000, clusters), ends_table()):
        assert "\n".join(table) in page
