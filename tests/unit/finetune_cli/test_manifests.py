"""`finetune validate` names file, line and field."""

from pathlib import Path

import pytest

from finetune_cli.main import main
from tests.example_manifests import JOBS

ROOT = Path(__file__).parents[3]
FINE = [
    *sorted(ROOT.glob("tests/manifests/good/*.yaml")),
    *JOBS.values(),
]
ABOUT_URIS = (
    "must be s3://",
    "needs a model on a hub",
    "must name a model on the hub",
    "white space",
    "control character",
    "named . or ..",
    "spec.output.uri must not",
)
ABOUT_PLACES = ("reads files from", "or a folder above it", "is already used by")
WRONG = [
    path
    for path in sorted(ROOT.glob("tests/manifests/bad/*.yaml"))
    if any(part in path.read_text().splitlines()[0] for part in (*ABOUT_URIS, *ABOUT_PLACES))
]
GOOD = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: tickets}
spec:
  model: {uri: s3://models/base}
  dataset:
    train:
      - uri: s3://data/rows.jsonl
  training:
    epochs: 3
  output: {uri: s3://results/tickets}
"""


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    def run(text: str) -> tuple[int, str]:
        path = tmp_path / "job.yaml"
        path.write_text(text)
        status = main(["validate", str(path)])
        return status, capsys.readouterr().err.replace(str(path), "job.yaml")

    return run


def test_a_good_manifest_passes(check) -> None:  # type: ignore[no-untyped-def]
    assert check(GOOD) == (0, "")


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (("epochs: 3", "epochs: 0"), "job.yaml:10: spec.training.epochs: Input should be greater than or equal to 1\n"),
        (("epochs: 3", "epoch: 3"), "job.yaml:10: spec.training.epoch: unknown field\n"),
        (("uri: s3://data", "url: s3://data"), "job.yaml:8: spec.dataset.train[0].uri: Field required\n"),
        (
            ("s3://results/tickets", "'s3://results/tickets '"),
            "job.yaml:11: spec.output.uri: must not have white space",
        ),
        (("s3://models/base", "hf://base"), "job.yaml:5: spec.model.uri: must be s3://BUCKET/PREFIX"),
        (
            ("rows.jsonl", "rows.txt"),
            "job.yaml:8: spec.dataset.train[0].uri: must be s3://BUCKET/KEY, hf://datasets/ORG/NAME/PATH or pvc://CLAIM",
        ),
        (
            ("s3://results/tickets", "s3://data"),
            "job.yaml:11: spec.output.uri: spec.dataset.train[0] (s3://data/rows.jsonl) reads files from ",
        ),
        (
            ("- uri: s3://data/rows.jsonl", "- uri: s3://data/rows.jsonl\n      - uri: s3://data/rows.jsonl"),
            "job.yaml:9: spec.dataset.train[1]: s3://data/rows.jsonl is already used by spec.dataset.train[0]. Remove",
        ),
        *(
            (
                ("  training:", f"    deduplicate: {{near: Keep, {option}}}\n  training:"),
                "job.yaml:9: spec.dataset.deduplicate: near Keep does not look for near copies: remove embeddingModel",
            )
            for option in ("threshold: 0.9", "embeddingModel: {uri: s3://models/minilm}")
        ),
        (("v1alpha1", "v1"), "job.yaml:1: apiVersion: must be finetune.dev/v1alpha1\n"),
        (("spec:", "spec: ]"), "job.yaml:4: the file is not valid YAML: "),
        (("epochs: 3", "epochs: !three 3"), "job.yaml:10: the file is not valid YAML: "),
    ],
)
def test_a_problem_is_named_with_line_and_field(check, change: tuple[str, str], finding: str) -> None:  # type: ignore[no-untyped-def]
    status, said = check(GOOD.replace(*change))

    assert status == 1
    assert finding in said


@pytest.mark.parametrize("near", ["Group", "Drop"])
def test_options_of_near_duplicates_pass_where_they_are_looked_for(check, near: str) -> None:  # type: ignore[no-untyped-def]
    asked = f"    deduplicate: {{near: {near}, threshold: 0.9}}\n  training:"
    assert check(GOOD.replace("  training:", asked)) == (0, "")


def test_a_missing_file_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "nowhere.yaml"]) == 1
    assert capsys.readouterr().err == "nowhere.yaml: No such file or directory\n"


@pytest.mark.parametrize(
    ("content", "finding"),
    [
        (
            b"kind: FinetuneJob\nspec: {}\n",
            "the file contains no FineTuneJob or FineTuneProfile; it contains FinetuneJob",
        ),
        (b"", "the file contains no FineTuneJob or FineTuneProfile; it contains nothing"),
        (b"\xff\xfe", "the file is not UTF-8: save it as UTF-8"),
        (b"kind: \x00", "the file is not valid YAML: "),
    ],
)
def test_a_file_without_anything_to_check_is_not_called_fine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, finding: str
) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(content)
    assert main(["validate", str(path)]) == 1
    assert f"job.yaml: {finding}" in capsys.readouterr().err


def test_the_items_of_a_list_are_checked(check) -> None:  # type: ignore[no-untyped-def]
    listed = "kind: List\nitems:\n- " + GOOD.replace("epochs: 3", "epoch: 3").replace("\n", "\n  ")
    assert check(listed) == (1, "job.yaml:12: spec.training.epoch: unknown field\n")


def test_other_kinds_in_the_same_file_are_passed_over(check) -> None:  # type: ignore[no-untyped-def]
    assert check("kind: Secret\n---\n" + GOOD) == (0, "")


@pytest.mark.parametrize("path", FINE, ids=lambda path: path.stem)
def test_manifests_that_the_api_server_accepts_pass(path: Path) -> None:
    assert main(["validate", str(path)]) == 0


@pytest.mark.parametrize("path", WRONG, ids=lambda path: path.stem)
def test_uris_and_places_that_the_cluster_refuses_are_found_without_it(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", str(path)]) == 1
    said = capsys.readouterr().err
    field = "spec." if "spec.output.uri must not" not in path.read_text().splitlines()[0] else "spec.output.uri: "
    assert f": {field}" in said
