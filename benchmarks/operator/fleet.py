"""python -m benchmarks.operator.fleet [--jobs 100000] [--clusters 1 2 5 10 20]

Simulates many FineTuneJobs on several clusters. Each cluster has a control plane and an operator of its own. Nothing is
measured here: `MEASURED` and `KUBERNETES` have all constants.

The model leaves out: nodes, GPUs, the scheduler, the network between data centers, other users of the API server, and
uneven tenants. It assumes that costs per job do not grow with the number of jobs, that the bare client uses all cores
of its machine, and that etcd's disk is not the limit."""

import argparse
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.operator.figures import percentile

GIB = 2**30
ETCD, CORE, PODS = "etcd", "operator's core", "pods"
"""Things that can end first."""


@dataclass(frozen=True)
class Measured:
    """Figures of `python -m benchmarks.operator` on two cores that operator, API server and etcd share."""

    cores: int = 2
    operator_ms: float = 7.2
    """Processor time of the operator for a job up to its child Job: --only throughput --jobs 1000."""
    bare_jobs_per_second: float = 124
    """Rate of the bare client with the same writes, mean of before and after: --only throughput --jobs 1000."""
    bare_writes_per_job: int = 3
    restarts: tuple[tuple[int, float, float], ...] = ((0, 1.6, 70), (1000, 7.4, 110), (10_000, 49, 222))
    """Live jobs, seconds until steady, and peak memory in MiB: --only residents --jobs N. More lines make the
    extrapolation better. The first line is the operator without jobs."""
    reporting_share: float = 0.126
    """Share of a core for 1,000 trainers that report: --only residents --jobs 1000."""
    report_seconds: float = 10
    """Pause between two reports of a trainer: INTERVAL_SECONDS in finetune_trainer.pod.progress."""
    job_bytes: float = 28_800
    """A live job with its ConfigMap, two Jobs and two Pods in etcd: --only stored --jobs 300."""
    report_bytes: float = 6_400
    """Growth of etcd's file by one report, until the old version is removed: --only stored --jobs 300."""


@dataclass(frozen=True)
class Kubernetes:
    """Limits and defaults of Kubernetes 1.36 and etcd 3.6. docs/scale.md has the sources."""

    etcd_quota: int = 2 * GIB
    etcd_maximum: int = 8 * GIB
    """Suggested maximum of --quota-backend-bytes."""
    compaction_seconds: int = 300
    """--etcd-compaction-interval of the API server. Versions of up to two intervals are kept."""
    pods: int = 150_000
    finished_pods: int = 12_500
    """--terminated-pod-gc-threshold of the controller-manager."""
    controller_requests_per_second: int = 20
    """--kube-api-qps of the controller-manager. Its Job controller needs at least one request for each pod."""


MEASURED, KUBERNETES = Measured(), Kubernetes()


@dataclass(frozen=True)
class Need:
    """What the jobs of one cluster need of a limited thing."""

    what: str
    need: float
    limit: float

    @property
    def share(self) -> float:
        """The need as a part of the limit. The jobs fit if it is at most 1."""
        return self.need / self.limit


def seconds_per_job(measured: Measured = MEASURED) -> float:
    """Returns the seconds from one child Job to the next when many FineTuneJobs wait.

    The operator is one Python process, so it uses one core at most. It shares all cores with the API server."""
    operator = measured.operator_ms / 1000
    api_server = measured.cores / measured.bare_jobs_per_second
    return max(operator, (operator + api_server) / measured.cores)


def child_jobs(arrivals: Sequence[float], clusters: int, seconds: float) -> list[float]:
    """Returns when each job gets its child Job, in seconds, in the order of `arrivals`.

    `arrivals`: when each job is created, in ascending order. Each job goes to the cluster that is free first. A cluster
    needs `seconds` for a job."""
    free = [0.0] * clusters
    done = []
    for arrival in arrivals:
        end = max(arrival, heapq.heappop(free)) + seconds
        heapq.heappush(free, end)
        done.append(end)
    return done


def restart(jobs: float, measured: Measured = MEASURED) -> tuple[float, float]:
    """Returns the seconds and the peak MiB of a restart with this number of live jobs.

    Between two measured numbers the result is interpolated. Beyond the last one, the last line is extended."""
    for (low, *before), (high, *after) in pairwise(measured.restarts):
        part = (jobs - low) / (high - low)
        if jobs <= high or high == measured.restarts[-1][0]:
            seconds, mib = (old + part * (new - old) for old, new in zip(before, after, strict=True))
            return seconds, mib
    raise ValueError("restarts has fewer than two lines")


def etcd_bytes(jobs: float, compaction_seconds: float, measured: Measured = MEASURED) -> float:
    """Returns the size of etcd's file with this number of live jobs whose trainers report.

    Each report stores a new version of the FineTuneJob. A compaction removes the versions that were old at the
    compaction before, so versions of up to two intervals are kept."""
    versions = 2 * compaction_seconds / measured.report_seconds
    return jobs * (measured.job_bytes + versions * measured.report_bytes)


def report_cores(jobs: float, measured: Measured = MEASURED) -> float:
    """Returns the cores of API server and etcd for the reports of this number of trainers."""
    writes_per_core = measured.bare_jobs_per_second * measured.bare_writes_per_job / measured.cores
    return jobs / measured.report_seconds / writes_per_core


def needs(
    jobs: float, quota: float, compaction_seconds: float, measured: Measured = MEASURED, limits: Kubernetes = KUBERNETES
) -> list[Need]:
    """Returns what this number of live jobs with reporting trainers needs in one cluster."""
    return [
        Need(ETCD, etcd_bytes(jobs, compaction_seconds, measured), quota),
        Need(CORE, jobs / 1000 * measured.reporting_share, 1),
        Need(PODS, jobs + min(jobs, limits.finished_pods), limits.pods),
    ]


def verdict(found: Sequence[Need]) -> str:
    """Returns "fits", or the thing that ends first and how many times its limit is needed."""
    worst = max(found, key=lambda need: need.share)
    return "fits" if worst.share <= 1 else f"{worst.what}: {worst.share:.1f} times its limit"


def most(what: str, quota: float, compaction_seconds: float) -> int:
    """Returns the largest number of live jobs with reporting trainers for which `what` is enough in one cluster."""
    low, high = 0, 10_000_000
    while low < high:
        middle = (low + high + 1) // 2
        need = next(need for need in needs(middle, quota, compaction_seconds) if need.what == what)
        low, high = (middle, high) if need.share <= 1 else (low, middle - 1)
    return low


def burst_table(jobs: int, clusters: Sequence[int]) -> Iterator[str]:
    """Yields the lines of a Markdown table: all jobs are created at once."""
    yield "| clusters | jobs per cluster | all have a child Job after | median wait | p99 wait | pods need at least |"
    yield "| --: | --: | --: | --: | --: | --: |"
    for number in clusters:
        waits = child_jobs([0.0] * jobs, number, seconds_per_job())
        pods = jobs / number / KUBERNETES.controller_requests_per_second
        shown = [duration(s) for s in (max(waits), percentile(waits, 50), percentile(waits, 99), pods)]
        yield f"| {number} | {jobs / number:,.0f} | {' | '.join(shown)} |"


def live_table(jobs: int, clusters: Sequence[int]) -> Iterator[str]:
    """Yields the lines of a Markdown table: all jobs train and report."""
    yield (
        "| clusters | restart | peak memory | reports: operator's core | reports: cores of the control plane "
        "| etcd, default compaction | etcd, compaction every minute | with defaults | 8 GiB, compaction every minute |"
    )
    yield "| --: | --: | --: | --: | --: | --: | --: | --- | --- |"
    for number in clusters:
        each = jobs / number
        seconds, mib = restart(each)
        sizes = [etcd_bytes(each, interval) / GIB for interval in (KUBERNETES.compaction_seconds, 60)]
        cells = [
            *(str(number), duration(seconds), f"{mib:,.0f} MiB", f"{each / 1000 * MEASURED.reporting_share:.0%}"),
            *(f"{report_cores(each):.1f}", *(f"{size:.1f} GiB" for size in sizes)),
            verdict(needs(each, KUBERNETES.etcd_quota, KUBERNETES.compaction_seconds)),
            verdict(needs(each, KUBERNETES.etcd_maximum, 60)),
        ]
        yield f"| {' | '.join(cells)} |"


def ends_table() -> Iterator[str]:
    """Yields the lines of a Markdown table: how many live jobs each limit of one cluster allows."""
    yield "| limit | live jobs with reporting trainers |"
    yield "| --- | --: |"
    for quota in (KUBERNETES.etcd_quota, KUBERNETES.etcd_maximum):
        for interval in (KUBERNETES.compaction_seconds, 60):
            jobs = most(ETCD, quota, interval)
            yield f"| etcd, quota of {quota // GIB} GiB, compaction every {duration(interval)} | {jobs:,} |"
    yield f"| one core of the operator | {most(CORE, GIB, 60):,} |"
    yield f"| pods of a cluster | {most(PODS, GIB, 60):,} |"


def duration(seconds: float) -> str:
    """Returns a time for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.operator.fleet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--jobs", type=int, default=100_000, help="number of FineTuneJobs (default: 100000)")
    parser.add_argument("--clusters", type=int, nargs="+", default=[1, 2, 5, 10, 20], help="numbers of clusters")
    options = parser.parse_args()
    if options.jobs < 1 or min(options.clusters) < 1:
        parser.error("--jobs and --clusters: use 1 or more")
    print(f"One cluster: {1 / seconds_per_job():.0f} child Jobs per second.\n")
    for title, lines in {
        f"{options.jobs:,} jobs are created at once": burst_table(options.jobs, options.clusters),
        f"{options.jobs:,} jobs train and report every {MEASURED.report_seconds:.0f} s": live_table(
            options.jobs, options.clusters
        ),
        "Where one cluster ends": ends_table(),
    }.items():
        print(f"{title}:\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
