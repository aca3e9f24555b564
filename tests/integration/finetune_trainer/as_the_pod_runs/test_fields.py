"""Nothing that a job can say is left out of what is run as a pod runs it."""

import re

from finetune_api.spec.dataset import Source
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.run_policy import Budget, RunPolicy
from tests.integration.api_fields import everything, said
from tests.integration.finetune_trainer.as_the_pod_runs.cases import CASES
from tests.integration.finetune_trainer.as_the_pod_runs.inputs import COMPRESSIONS
from tests.integration.finetune_trainer.as_the_pod_runs.readings import READINGS

NOT_THE_TRAINERS = {
    "FineTuneJobSpec.profile_name": "the operator reads it",
    "FineTuneJobSpec.suspend": "the operator reads it",
    "FineTuneJobSpec.run_policy": "the operator reads it",
    **{f"RunPolicy.{field}": "the operator reads it" for field in RunPolicy.model_fields},
    **{f"Budget.{field}": "the operator reads it" for field in Budget.model_fields},
    "Compute.cpu": "the operator reads it",
    "Compute.service_account_name": "the operator reads it",
}


def test_every_field_and_every_choice_of_a_job_is_run_by_a_case() -> None:
    run = {item for spec in CASES.values() for item in said(FineTuneJobSpec.model_validate(spec))}
    assert everything(FineTuneJobSpec) - run == set(NOT_THE_TRAINERS)


def test_a_field_that_no_case_sets_is_noticed() -> None:
    spec = FineTuneJobSpec.model_validate(CASES["too-long"])
    assert {"Training.epochs", "Lora.use_dora", "Scheduler=Constant", "Columns.system"} <= everything(
        type(spec)
    ) - said(spec)


def test_every_kind_of_file_and_compression_that_a_uri_may_end_with_is_read() -> None:
    rule = str(Source.model_json_schema()["properties"]["uri"])
    ending = re.search(r"\(\((?P<kinds>[a-z|]+)\)\(\[\.\]\((?P<compressions>[a-z|]+)\)\)\?\|(?P<alone>[a-z]+)\)", rule)
    assert ending, "the rule on a source's URI has changed: read its kinds of file here in another way"
    kinds = {*ending["kinds"].split("|"), ending["alone"]}
    compressions = {f".{name}" for name in ending["compressions"].split("|")}
    parted = [re.fullmatch(r"[a-z-]+\.([a-z]+)(\.[a-z]+)?", name) for name in READINGS]
    assert {part[1] for part in parted if part} == kinds
    assert {part[2] for part in parted if part} - {None} == compressions == {*COMPRESSIONS} - {""}
