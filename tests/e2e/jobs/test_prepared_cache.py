"""Prepared rows that a second job of the namespace takes over from the cache that its profile names."""

from tests.e2e.tenant import END_SECONDS, SUMS_COLUMNS, Tenant, message, sums
from tests.integration.jobs import Job
from tests.integration.waiting import wait_for

CACHE = "cache-of-rows"
TAKEN_OVER = "The rows are those that job "


def validated(job: Job) -> str:
    """The message of the condition Validated, once it is true."""
    found = wait_for(
        f"{job.name} to be validated",
        lambda: [c for c in job.status().get("conditions", []) if (c["type"], c["status"]) == ("Validated", "True")],
        timeout=END_SECONDS,
    )
    return str(found[0]["message"])


def test_a_second_job_takes_over_the_rows_that_the_first_one_prepared_and_says_so(tenant: Tenant) -> None:
    profile = tenant.profile_with("with-cache-of-rows", preparedCache={"uri": f"s3://results/{CACHE}"})
    rows = tenant.put_rows("cached/rows.jsonl", sums(40))
    dataset = {"train": [{"uri": rows, "columns": SUMS_COLUMNS}]}

    def created(name: str) -> Job:
        return tenant.create(name, rows, profileName=profile, dataset=dataset, training={"maxSteps": 1})

    first = created("prepares")
    assert TAKEN_OVER not in validated(first)
    kept = tenant.objects("results", f"{CACHE}/{tenant.namespace}/")
    assert kept

    second = created("takes-over")
    assert validated(second).endswith(f" {TAKEN_OVER}prepares prepared from the same files.")
    for job in (first, second):
        status = tenant.end_of(job)
        assert status["state"] == "Complete", message(status)
    assert tenant.objects("results", CACHE) == kept, "a job that ends deletes nothing from the cache"
