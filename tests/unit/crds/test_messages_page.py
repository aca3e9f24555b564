"""The page of messages has what a user can meet, under the reason whose remedy follows it."""

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from finetune_api.reasons import FAILURES, FailureReason
from finetune_api.schema import job_crd

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def page() -> ModuleType:
    """crds/messages_page.py, which belongs to a script and to no package."""
    sys.path.insert(0, str(ROOT / "crds"))
    try:
        return importlib.import_module("messages_page")
    finally:
        sys.path.remove(str(ROOT / "crds"))


def source(root: Path, text: str) -> Path:
    module = root / "trainer_image" / "finetune_trainer" / "told.py"
    module.parent.mkdir(parents=True)
    module.write_text(text)
    return root


def section(text: str, heading: str) -> str:
    return text.split(f"{heading}\n", 1)[1].split("\n#", 1)[0]


def test_the_message_of_a_failure_is_listed_under_its_reason_with_the_remedy(page: ModuleType, tmp_path: Path) -> None:
    code = 'def f(uri):\n    raise TrainerFailure(FailureReason.DISK_FULL, f"There is no room for {uri.name}.")\n'
    text = page.messages_text(source(tmp_path, code), [])
    found = section(text, "### DiskFull")
    assert "There is no room for {name}." in found
    assert FAILURES[FailureReason.DISK_FULL].remedy in found


def test_a_message_is_followed_through_a_variable_of_its_function(page: ModuleType, tmp_path: Path) -> None:
    code = (
        "def f(uri):\n"
        '    finding = "There is no room left"\n'
        "    raise TrainerFailure(FailureReason.DISK_FULL, finding)\n"
    )
    assert "There is no room left" in section(page.messages_text(source(tmp_path, code), []), "### DiskFull")


def test_an_own_remedy_follows_its_finding(page: ModuleType, tmp_path: Path) -> None:
    code = 'raise TrainerFailure(FailureReason.DISK_FULL, f"{name} is full.", "Delete a file.")\n'
    found = section(page.messages_text(source(tmp_path, code), []), "### DiskFull")
    assert "- {name} is full. \u2192 Delete a file. (`finetune_trainer.told`)" in found


def test_texts_that_fill_a_placeholder_are_listed_only_below_their_message(page: ModuleType, tmp_path: Path) -> None:
    code = (
        "def why(a):\n"
        "    if a:\n"
        '        return "it is full"\n'
        '    return f"it has {a} bytes"\n'
        "def f(a, many):\n"
        "    found = why(a)\n"
        """    print(f"The disk cannot be used, because {found}. Delete the file{'s' * many}.")\n"""
    )
    text = page.messages_text(source(tmp_path, code), [])
    assert (
        "- The disk cannot be used, because {found}. Delete the file[s]. (`finetune_trainer.told`)\n"
        '  - {found}: "it is full"\n'
        '  - {found}: "it has {a} bytes"\n'
    ) in text
    assert "- it is full" not in text


def test_a_text_that_only_one_function_completes_is_listed_complete(page: ModuleType, tmp_path: Path) -> None:
    code = (
        "def refusal(uri, what, remedy='Mend it.'):\n"
        '    return TrainerFailure(FailureReason.DISK_FULL, f"{uri} {what}.", remedy)\n'
        "def f(uri):\n"
        '    raise refusal(uri, "is not JSON")\n'
    )
    assert "- {uri} is not JSON. \u2192 Mend it. (" in page.messages_text(source(tmp_path, code), [])


@pytest.mark.parametrize("reading", ["from finetune_trainer import files", "from finetune_trainer.files import INDEX"])
def test_the_text_of_another_module_fills_its_placeholder(page: ModuleType, tmp_path: Path, reading: str) -> None:
    name = "files.INDEX" if reading.endswith("files") else "INDEX"
    root = source(tmp_path, f'{reading}\nSAID = f"{{uri}} has no {{{name}}} beside it."\n')
    defining = 'ENDING = "json"\nWEIGHTS, INDEX = "weights", f"index.{ENDING}"\n'
    (root / "trainer_image" / "finetune_trainer" / "files.py").write_text(defining)
    assert "- {uri} has no index.json beside it. (`finetune_trainer.told`)" in page.messages_text(root, [])


def test_a_file_in_a_folder_is_named_with_both(page: ModuleType, tmp_path: Path) -> None:
    code = 'CONFIG = "config.json"\nSAID = f"{join(uri, CONFIG)} and {join(uri, path.name)} cannot be read."\n'
    text = page.messages_text(source(tmp_path, code), [])
    assert "- {uri}/config.json and {uri}/{name} cannot be read." in text


def test_a_part_of_a_sentence_is_not_listed_alone(page: ModuleType, tmp_path: Path) -> None:
    text = page.messages_text(source(tmp_path, 'LABELS = ["Rows that were dropped", ", in 4 bits of course"]\n'), [])
    assert "dropped" not in text
    assert "of course" not in text


def test_docstrings_names_and_patterns_are_no_messages(page: ModuleType, tmp_path: Path) -> None:
    code = (
        '"""What this module is."""\nNAME = "two words"\nPATTERN = r"a \\d+ of many words"\n'
        'SAID = "This is a message."\n'
    )
    text = page.messages_text(source(tmp_path, code), [])
    assert "This is a message." in text
    assert not any(other in text for other in ("What this module is", "two words", "of many words"))


def test_the_rules_of_the_api_server_are_listed_with_their_fields(page: ModuleType, tmp_path: Path) -> None:
    text = page.messages_text(source(tmp_path, ""), [job_crd()])
    assert "- `FineTuneJob.spec.evaluation.baselines`: must contain Base" in text


def test_every_reason_has_its_part(page: ModuleType, tmp_path: Path) -> None:
    text = page.messages_text(source(tmp_path, ""), [])
    assert all(f"### {reason}\n" in text for reason in FailureReason)


def test_no_remedy_of_a_failure_says_itself_that_the_job_must_be_created_again() -> None:
    failures = (ROOT / "docs" / "messages.md").read_text().split("## Failures, by reason", 1)[1].split("\n## ", 1)[0]
    remedies = [line.partition(" \u2192 ")[2] for line in failures.splitlines() if " \u2192 " in line]
    assert len(remedies) > 100
    assert [remedy for remedy in remedies if re.search(r"[Cc]reate (the|this) job again", remedy)] == []
