"""Rows in the form of public data sets go through the whole preflight: the trained tokens, and the advice."""

import json
from pathlib import Path
from typing import Any

from finetune_api.reasons import FailureReason
from finetune_trainer.handover.prepared import Prepared
from tests.unit.finetune_trainer.conftest import MakeBundle, save_tokenizer, sum_rows
from tests.unit.finetune_trainer.preflight_runs import failure, run

COUNT = 40


def talk(number: int, **first: Any) -> dict[str, Any]:
    """A conversation with a wrong answer that is put right."""
    return {
        "messages": [
            {"role": "user", "content": f"What is {number} plus {number}?"},
            {"role": "assistant", "content": f"Wrong {number}.", **first},
            {"role": "user", "content": "Look again."},
            {"role": "assistant", "content": f"It is {2 * number}."},
        ]
    }


def told(prepared: Prepared) -> dict[str, str]:
    return {advice.reason: advice.message for advice in prepared.preflight.advice or []}


def test_an_answer_excluded_from_training_is_context_and_reported_once(make_bundle: MakeBundle, tmp_path: Path) -> None:
    flagged = run(make_bundle([talk(number, train=False) for number in range(COUNT)]))
    learned, tokens = flagged.preflight.supervised_tokens, flagged.preflight.tokens
    assert told(flagged)["TurnsNotLearned"].startswith("40 answers in 40 rows are excluded from training by train.")
    output = {"uri": str(tmp_path / "other")}
    plain = run(make_bundle([talk(number) for number in range(COUNT)], output=output))
    assert plain.preflight.tokens == tokens
    assert learned is not None
    assert plain.preflight.supervised_tokens is not None
    assert plain.preflight.supervised_tokens > learned
    assert "TurnsNotLearned" not in told(plain)


def test_loss_on_all_refuses_answers_excluded_from_training(make_bundle: MakeBundle) -> None:
    bundle = make_bundle([talk(number, weight=0) for number in range(COUNT)], training={"lossOn": "All"})
    found = failure(bundle)
    assert found.reason is FailureReason.SPEC_INVALID
    assert found.message == (
        "spec.training.lossOn is All, which trains on every token, but 40 answers are excluded from training by "
        "weight. Set spec.training.lossOn to Completion, or remove weight from the rows."
    )


def test_numbers_reasoning_and_unused_columns_are_reported_once(make_bundle: MakeBundle) -> None:
    rows = [
        row | {"completion": number, "reasoning": f"{number} twice", "details": "some words that nobody reads"}
        for number, row in enumerate(sum_rows(COUNT))
    ]
    said = told(run(make_bundle(rows)))
    assert "completion contains numbers in 40 of 40 rows" in said["ValuesReadAsText"]
    assert "reasoning contains reasoning in 40 of 40 rows" in said["ThoughtsLearned"]
    assert (
        "the column details of spec.dataset.train[0] (40 of 40 rows; set columns: {instruction: prompt"
        in said["ColumnUnused"]
    )


def test_texts_that_already_have_special_tokens_get_none_twice_and_the_advice_reports_them(
    make_bundle: MakeBundle, tmp_path: Path, tiny_model_dir: Path
) -> None:
    save_tokenizer(tmp_path / "tokenizer", bos=True)
    folder = tmp_path / "model"
    folder.mkdir()
    for file in [*tiny_model_dir.iterdir(), *(tmp_path / "tokenizer").iterdir()]:
        (folder / file.name).write_bytes(file.read_bytes())
    rows = [{"text": f"<s><|start|>user\nWhat is {n}?<|end|>\n<|start|>assistant\n{n}.<|end|>\n"} for n in range(COUNT)]
    prepared = run(make_bundle(rows, model={"uri": str(folder)}))
    for example in prepared.train:
        assert (example.input_ids == 1).sum() == 1
        assert (example.input_ids == 3).sum() == 2
    said = told(prepared)
    assert (
        f"{len(prepared.train)} of {len(prepared.train)} Text rows contain special tokens"
        in said["SpecialTokensInText"]
    )
    assert "PromptFormatInRows" not in said
    assert not prepared.preflight.findings


def test_a_table_of_conversations_is_read(make_bundle: MakeBundle, tmp_path: Path) -> None:
    cells = [json.dumps(talk(number)["messages"]).replace('"', '""') for number in range(COUNT)]
    table = tmp_path / "rows.tsv"
    table.write_text("\tid\tmessages\n" + "".join(f'{n}\t{n}\t"{cell}"\n' for n, cell in enumerate(cells)))
    prepared = run(make_bundle(dataset={"train": [{"uri": str(table)}]}))
    assert len(prepared.train) + len(prepared.test) == COUNT


def test_an_error_in_every_row_is_reported_once(make_bundle: MakeBundle) -> None:
    rows = [{"messages": [{"role": "user", "value": "q"}, {"role": "assistant", "value": "a"}]} for _ in range(COUNT)]
    message = failure(make_bundle(rows)).message
    assert message.count("mixes keys of two kinds") == 1
    assert message.endswith("(message 1, keys found: role, value). The same error is in 39 more rows.")
