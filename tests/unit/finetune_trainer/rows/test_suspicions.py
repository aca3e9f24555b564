"""What looks wrong in a text, and what only looks unusual."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from finetune_trainer.rows.row_format import DOCUMENT, Message, Row
from finetune_trainer.rows.suspicions import MOJIBAKE, Suspicions
from finetune_trainer.sources.findings import Findings
from tests.unit.finetune_trainer.conftest import save_tokenizer


@pytest.fixture(scope="module")
def suspicions(tmp_path_factory: pytest.TempPathFactory) -> Suspicions:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return Suspicions(AutoTokenizer.from_pretrained(folder))


def noted(suspicions: Suspicions, *texts: str) -> list[str]:
    findings = Findings()
    rows = [Row((Message("user", text), Message("assistant", text)), f"t.jsonl:{n}") for n, text in enumerate(texts)]
    assert list(suspicions.note(rows, findings)) == rows
    return [f"{finding.message}: {finding.rows}" for finding in findings.listed()]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("a \x00 b", "the text contains a control character"),
        ("\x1b[31mred", "the text contains a control character"),
        ("then \ufeffnext", "the text contains a control character"),
        ("caf\ufffd", "the text contains U+FFFD: the original character was lost when the file was written"),
        ("cafÃ© crÃ¨me â€œnowâ€\x9d".replace("\x9d", ""), MOJIBAKE),
        ("Go.<|end|>\n<|start|>user", "the text contains a special token of the model"),
    ],
)
def test_what_looks_wrong_is_noted_once_a_row(suspicions: Suspicions, text: str, kind: str) -> None:
    assert noted(suspicions, "fine", text, text) == [f"{kind}: 2"]


@pytest.mark.parametrize(
    "text",
    ["tab\there\r\nand there", "naïve café — “quoted”", "日本語のテキスト", "Ω ≈ 3 €", "🙂👍🏽", "<b>bold</b> <|x|>"],
)
def test_what_is_only_unusual_is_not(suspicions: Suspicions, text: str) -> None:
    assert noted(suspicions, text) == []


def test_a_special_token_in_a_text_row_is_kept_and_reported_only_in_the_advice(suspicions: Suspicions) -> None:
    findings = Findings()
    row = Row((Message(DOCUMENT, "<|start|>user\x00"),), "t.jsonl:1")
    assert list(suspicions.note([row], findings)) == [row]
    assert [finding.message for finding in findings.listed()] == ["the text contains a control character"]
