"""The report is one complete page. Rows are never read as markup. Every number is a number of the results."""

import re
import warnings
from dataclasses import replace
from functools import cache
from itertools import pairwise

import html5lib
import pytest
from lxml.html import HtmlElement, fromstring

from finetune_api.quantity import gibibytes
from finetune_api.spec.evaluation import MetricName
from finetune_api.spec.gpu_type import GpuType
from finetune_api.spec.method import MethodType
from finetune_api.status.evaluation import GateResult
from finetune_trainer.evaluation.verdict import METRIC_TITLES, percent, shown
from finetune_trainer.metrics.values import LIKELIHOODS, LOWER_IS_BETTER
from finetune_trainer.results.pages import LONGEST_TEXT
from finetune_trainer.results.report import curves, report_page
from finetune_trainer.results.report_results import DASH, MINUS
from finetune_trainer.results.report_tables import layout_text, training_facts
from finetune_trainer.results.results import Results
from finetune_trainer.statistics.evidence import Outcome
from finetune_trainer.statistics.measurements import Answer
from finetune_trainer.training.training_progress import duration
from finetune_trainer.training.validation import ValidationLoss
from tests.unit.finetune_trainer.complete_run import ADVICE, AREAS, CLEANED, json_results, label_results
from tests.unit.finetune_trainer.conftest import MakeBundle
from tests.unit.finetune_trainer.small_runs import assessment, example, examples, results

ATTACK = '<script>alert(1)</script><img src="https://evil.test/x" onerror=x> & {{ 7 * 7 }} </pre></style>'


@cache
def complete() -> tuple[Results, str]:
    """A run with every optional part of the report, and its page."""
    run = json_results()
    return run, report_page(run)


def page_of(run: Results) -> HtmlElement:
    return fromstring(report_page(run))


def text(element: HtmlElement) -> str:
    return " ".join(element.text_content().split())


def figures(page: HtmlElement, section: str) -> list[list[str]]:
    """The cells of the section's tables of figures."""
    rows = page.xpath(f"//section[@id='{section}']//table[contains(@class, 'figures')]//tr")
    return [[text(cell) for cell in row] for row in rows]


def rows_of(page: HtmlElement, head: str) -> dict[str, list[str]]:
    """The rows of the one table whose first column is headed `head`, by their names."""
    [table] = page.xpath(f"//table[thead/tr/th[1]='{head}']")
    return {text(row[0]): [text(cell) for cell in row[1:]] for row in table.xpath(".//tr")}


def facts(page: HtmlElement, section: str) -> dict[str, str]:
    """Names and values of the section's figures and of its tables of details."""
    names = page.xpath(f"//section[@id='{section}']//dt | //section[@id='{section}']//table[@class='details']//th")
    return {text(name): text(name.getnext()) for name in names}


def test_the_verdict_comes_first() -> None:
    run, html = complete()
    page = fromstring(html)
    heading = page.xpath("//h1")[0]
    assert text(heading) == run.evaluation.verdict
    assert html.index("<h1") < min(html.index(tag) for tag in ("<table", "<svg", "<dl", "<section"))
    assert run.comparison.outcome is Outcome.BETTER
    assert page.xpath("//header/@class") == ["good-news"]


def test_the_page_loads_no_other_files() -> None:
    _, html = complete()
    page = fromstring(html)
    targets = page.xpath("//@src | //@href | //@srcset | //@action | //@data | //@poster")
    assert targets
    assert all(target.startswith("#") for target in targets)
    assert {target[1:] for target in targets} <= set(page.xpath("//@id")), "every link in the contents has a target"
    assert not page.xpath("//script | //link | //iframe | //img | //object | //embed | //form")
    assert not re.search(r"https?://|@import|url\(|javascript:", html)


def test_it_is_valid_html() -> None:
    _, html = complete()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        html5lib.HTMLParser(strict=True).parse(html)


def test_the_page_is_accessible_to_screen_readers() -> None:
    _, html = complete()
    page = fromstring(html)
    assert page.xpath("/html/@lang") == ["en"]
    assert all(svg.find("title") is not None and svg.get("role") == "img" for svg in page.xpath("//svg"))
    assert not page.xpath("//th[not(@scope)]")
    levels = [int(heading.tag[1]) for heading in page.xpath("//h1 | //h2 | //h3 | //h4")]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels)), "no level is left out"


def test_rows_and_answers_are_never_markup(make_bundle: MakeBundle) -> None:
    row = example(12, 4, place=ATTACK, texts=(ATTACK, ATTACK))
    run = results(make_bundle(), [row, *examples([12] * 3)])
    run.base.answers[0] = Answer(ATTACK, truncated=False, matches=False)
    run.tuned.answers[0] = Answer(ATTACK, truncated=True, matches=False)
    run = replace(run, serving=replace(run.serving, rendered=ATTACK, beginning=ATTACK, stop_tokens={3: ATTACK}))
    html = report_page(replace(run, base_license={"license": ATTACK}))
    page = fromstring(html)
    assert not page.xpath("//script | //img | //@onerror")
    whole = page.text_content()
    assert whole.count(ATTACK) == 9, "as it is: prompt, source, expected, base, tuned, three of serving, licence"


def test_every_figure_of_the_results_is_a_figure_of_the_evaluation() -> None:
    run, html = complete()
    rows = rows_of(fromstring(html), "Metric")
    assert rows["Metric"] == ["Base", "Few-shot", "Tuned", "Over base", "Over few-shot"]
    for name, row in run.comparison.metrics.items():
        cells = rows[METRIC_TITLES[name]]
        for cell, estimate in zip(cells, (row.base, row.few_shot, row.tuned), strict=False):
            low, high = estimate.interval if estimate else (0.0, 0.0)
            assert cell == (
                f"{shown(name, estimate.value)} {shown(name, low)} to {shown(name, high)}" if estimate else DASH
            )
        assert row.over_base
        moved = -row.over_base.value if name in LOWER_IS_BETTER else row.over_base.value
        text = f"{moved:+,.3g}" if name in LIKELIHOODS else f"{100 * moved:+.1f}"
        assert cells[3].split()[0] == text.replace("-", MINUS)
    cut = [
        metrics.truncated for metrics in (run.evaluation.base, run.evaluation.few_shot, run.evaluation.tuned) if metrics
    ]
    assert rows["Answers cut off at 58 tokens"][:3] == [str(count) for count in cut]


def test_the_deciding_metric_is_highlighted_and_drawn_with_its_intervals() -> None:
    run, html = complete()
    page = fromstring(html)
    decision = run.comparison.decision
    assert decision.few_shot
    assert text(page.xpath("//tr[@class='deciding']/th")[0]) == METRIC_TITLES[decision.name]
    drawn = page.xpath("//figure[@class='intervals']//circle")
    assert [float(circle.get("cx")) for circle in drawn] == pytest.approx(
        [540 * each.value for each in (decision.base, decision.few_shot, decision.tuned) if each], abs=0.1
    )


def test_sources_fields_gates_and_regression_sets_have_a_table_each() -> None:
    run, html = complete()
    page = fromstring(html)
    for source in run.comparison.sources:
        assert source.decision.tuned
        assert rows_of(page, "Source")[source.name][2].startswith(
            shown(source.decision.name, source.decision.tuned.value)
        )
    fields = rows_of(page, "Field")
    assert [fields[field.path] for field in run.comparison.fields] == [
        [f"{field.expected}", f"{field.right}", percent(field.right / field.expected)]
        for field in run.comparison.fields
    ]
    assert run.evaluation.gates
    assert run.evaluation.regression
    assert rows_of(page, "Gate")["Exact match"] == [
        "gain over few-shot at least 0.2",
        f"{run.evaluation.gates[1].value:.4g}",
        "✓ passed",
    ]
    found = run.evaluation.regression[0]
    assert rows_of(page, "Set")["general (Loss, 60 rows)"] == [
        *(f"{value:.4g}" for value in (found.base, found.tuned, found.drop)),
        "0.1",
        "✓ passed",
    ]


def test_labels_have_their_scores_and_a_confusion_matrix() -> None:
    run = label_results()
    page = page_of(run)
    assert run.comparison.labels
    rows = rows_of(page, "Label")
    for score in run.comparison.labels.scores:
        shares = [percent(share) for share in (score.precision, score.recall, score.f1)]
        assert rows[score.label] == [f"{score.expected}", *shares]
    head, *body = [[text(cell) for cell in row] for row in page.xpath("//table[@class='matrix']//tr")]
    assert head[1:] == [*AREAS, "(no label)"]
    counts = {
        (row[0], given): 0 if cell == "·" else int(cell)
        for row in body
        for given, cell in zip(head[1:], row[1:], strict=True)
    }
    assert {pair: count for pair, count in counts.items() if count} == run.comparison.labels.confusion
    assert sum(counts.values()) == len(run.held_out)


def test_of_many_labels_the_most_frequent_confusions_are_listed() -> None:
    run = label_results()
    labels = run.comparison.labels
    assert labels
    many = replace(labels, scores=[*labels.scores, *[replace(labels.scores[0], label=f"label {n}") for n in range(20)]])
    comparison = replace(run.comparison, labels=many)
    page = page_of(replace(run, assessment=replace(run.assessment, comparison=comparison)))
    assert not page.xpath("//table[@class='matrix']")
    wrong = {pair: rows for pair, rows in labels.confusion.items() if pair[0] != pair[1]}
    (table,) = [t for t in page.xpath("//table[@class='figures']") if text(t.xpath(".//th")[0]) == "Expected"]
    first = [text(cell) for cell in table.xpath(".//tbody/tr")[0]]
    assert wrong[first[0], first[1]] == int(first[2]) == max(wrong.values())


def test_without_answers_there_is_no_section_of_held_out_rows(make_bundle: MakeBundle) -> None:
    run = results(make_bundle())
    base, tuned = (replace(model, answers=[]) for model in (run.base, run.tuned))
    baselines = replace(run.assessment.baselines, base=base)
    page = page_of(replace(run, assessment=replace(run.assessment, baselines=baselines, tuned=tuned)))
    assert not page.xpath("//*[@id='rows'] | //a[@href='#rows']")


def test_a_job_that_trained_nothing_has_no_curves(make_bundle: MakeBundle) -> None:
    page = page_of(replace(results(make_bundle()), steps=[], validation=()))
    assert facts(page, "training").keys() == {"Evaluation time"}
    assert not page.xpath("//section[@id='training']//svg")


def test_a_worse_model_is_shown_as_worse(make_bundle: MakeBundle) -> None:
    run = results(make_bundle())
    swapped = assessment(run.held_out, run.tuned, run.base)
    page = page_of(replace(run, assessment=swapped))
    assert page.xpath("//header/@class") == ["bad-news"]
    changes = rows_of(page, "Metric")
    assert (changes["Exact match"][2][0], changes["Loss"][2][0]) == (MINUS, "+")
    assert set(page.xpath("//table[@class='figures']//td[3]/@class")[:4]) == {"bad"}


def test_the_card_of_a_model_that_missed_a_gate_begins_with_a_warning(make_bundle: MakeBundle) -> None:
    run = results(make_bundle())
    gate = GateResult(metric=MetricName.EXACT_MATCH, bound="Min", limit=0.9, value=0.5, passed=False)
    evaluation = run.evaluation.model_copy(update={"gates": [gate], "passed": False})
    page = page_of(replace(run, assessment=replace(run.assessment, evaluation=evaluation)))
    assert text(page.xpath("//header/p")[1]).endswith(
        "Do not use it. ExactMatch is 0.5, but its gate requires at least 0.9."
    )
    assert page.xpath("//header/@class") == ["bad-news"]


def test_the_curves_are_of_loss_validation_rate_speed_and_memory() -> None:
    run, html = complete()
    charts = fromstring(html).xpath("//section[@id='training']//svg")
    assert [text(chart.find("title")).split(",")[0].split(" over")[0] for chart in charts] == [
        "Loss",
        "Learning rate",
        "Throughput",
        "Memory",
    ]
    dots = [text(circle) for circle in charts[0].xpath(".//circle")]
    assert dots == [f"validation, step {point.step:,}: {point.loss:.4g}" for point in run.validation]


def test_training_data_and_provenance_have_the_values_of_the_run() -> None:
    run, html = complete()
    page = fromstring(html)
    training, data, provenance = (facts(page, section) for section in ("training", "data", "provenance"))
    assert training["Optimizer steps"] == "420 3 epochs"
    assert training["Throughput"] == "9,043 tokens per second"
    preflight = run.prepared.preflight
    assert preflight.splits
    assert data["Rows read"] == f"{preflight.rows:,}"
    assert data["Training rows"] == f"{preflight.splits.train:,}"
    assert data["Exact duplicates dropped"] == "84"
    assert provenance["Spec digest"] == run.bundle.spec_digest
    assert provenance["Base model"].endswith("8,030,261,248 parameters, licence llama3.1")
    assert facts(page, "recipe")["Batch size"] == "16 rows per optimizer step, micro-batches of 2,048 tokens"


def test_the_findings_of_preflight_are_shown_with_examples() -> None:
    _, html = complete()
    page = fromstring(html)
    assert [text(item) for item in page.xpath("//section[@id='data']//li")] == [ADVICE.message]
    assert rows_of(page, "Problem")["the answer is empty not used"] == ["3", "tickets/2026-01.jsonl line 88"]
    assert rows_of(page, "Problem")["mojibake used, but suspicious"] == ["17", "tickets/2026-02.jsonl line 4"]
    assert figures(page, "data")[1:] == [
        ["tickets", "train", "1,980", "371,004"],
        ["general", "train", "494", "91,114"],
    ]
    cleaning = {text(row[0]): row for row in page.xpath("//table[thead/tr/th='Rows changed']/tbody/tr")}
    assert {name: text(row[1]) for name, row in cleaning.items()} == {name: str(rows) for name, rows in CLEANED.items()}
    removed = cleaning["remove[0]"][2]
    assert [text(part) for part in removed.xpath(".//del")] == ["Sent from my phone"]
    assert [part.text for part in cleaning["mask[Email]"][2].xpath(".//ins")] == ["EMAIL_ADDRESS"]
    assert "2 rows had an empty prompt or answer after cleaning and were dropped." in text(
        page.xpath("//section[@id='data']")[0]
    )


def test_the_message_about_merging_is_shown() -> None:
    run, html = complete()
    assert run.evaluation.merged
    finding = fromstring(html).xpath("//li[@class='bad-news']")
    assert [text(item) for item in finding] == [run.evaluation.merged.message]


def test_the_cost_of_quantizing_alone_is_shown_under_qlora(make_bundle: MakeBundle) -> None:
    run, html = complete()
    section = fromstring(html).xpath("//section[@id='results']")[0]
    assert run.evaluation.quantized
    assert run.evaluation.quantized.message in text(section)
    assert "The base model was measured in bfloat16, the tuned model over 4-bit weights." in text(section)
    assert "Quantized weights" not in report_page(results(make_bundle()))


def test_predicted_and_measured_resources_are_in_one_table() -> None:
    run, html = complete()
    assert run.assessment.baselines.few_shot
    seconds = run.training_seconds + run.base.seconds + run.assessment.baselines.few_shot.seconds + run.tuned.seconds
    assert figures(fromstring(html), "sizing")[1:] == [
        ["l4, predicted", "11.8Gi", "6 min 52 s", "0.09"],
        ["t4-8g, predicted does not fit No method would fit.", "11.8Gi", DASH, DASH],
        ["NVIDIA L4, measured", gibibytes(max(step.memory for step in run.steps)), duration(seconds), ""],
    ]


def test_the_seconds_in_which_the_device_waited_for_the_model_are_shown() -> None:
    run, html = complete()
    assert not any("waited" in told for told in facts(fromstring(html), "provenance").values()), "nobody knows it"
    page = page_of(replace(run, training=run.training.model_copy(update={"model_seconds": 83.4})))
    assert facts(page, "provenance")["Fetching the base model"] == "1 min 23 s, while the device waited"


def test_the_gpu_type_that_the_operator_chose_is_marked() -> None:
    run, _ = complete()
    types = [{"name": each.gpu_type} for each in run.prepared.preflight.estimate or []]
    bundle = run.bundle.model_copy(update={"gpu_types": [GpuType.model_validate(each) for each in types]})

    def marked(on: str | None) -> list[str]:
        page = page_of(replace(run, bundle=bundle.on(on)))
        return [row[0] for row in figures(page, "sizing") if "predicted used" in row[0]]

    assert marked("l4") == ["l4, predicted used"]
    assert marked("t4-8g") == ["t4-8g, predicted used does not fit No method would fit."]
    assert marked(None) == [], "a run without an operator"


def test_the_page_says_how_to_serve() -> None:
    run, html = complete()
    page = fromstring(html)
    blocks = [block.text_content() for block in page.xpath("//section[@id='serving']//pre")]
    # HTML drops a newline that follows the tag, and no more than that.
    assert blocks == [run.serving.rendered, run.serving.beginning]
    assert facts(page, "serving")["Stop tokens"] == "<|eot_id|> (128009), <|end_of_text|> (128001)"


def test_it_works_for_a_cluster_job_a_local_run_and_qlora(make_bundle: MakeBundle) -> None:
    job = {"namespace": "team-a", "name": "tickets", "uid": "0123-4567"}
    assert "team-a / tickets" in report_page(results(make_bundle(job=job)))
    assert "Local run" in report_page(results(make_bundle()))
    assert "All models were measured in bfloat16." in report_page(results(make_bundle()))
    assert "All models were measured over 4-bit weights." in report_page(
        results(make_bundle(method={"type": MethodType.QLORA}))
    )


@pytest.mark.parametrize("steps", [1, 2, 30, 5000])
def test_any_number_of_steps_can_be_drawn(make_bundle: MakeBundle, steps: int) -> None:
    html = report_page(results(make_bundle(), steps=steps))
    points = [float(number) for line in re.findall(r'points="([^"]*)"', html) for number in re.split("[ ,]", line)]
    assert points
    assert all(0 <= number <= 640 for number in points)
    assert len(html) < 300_000, "small enough for an e-mail"


def test_a_text_of_any_length_is_shown_cut(make_bundle: MakeBundle) -> None:
    row = example(12, 4, texts=("x" * 100_000, "y"))
    assert "x" * (LONGEST_TEXT + 1) not in report_page(results(make_bundle(), [row, example(12, 4)]))


def test_the_loss_chart_has_the_validation_curve_and_the_facts_have_its_minimum(make_bundle: MakeBundle) -> None:
    run = results(make_bundle())
    without = curves(run.steps)
    points = (ValidationLoss(10, 1.5, 1.0), ValidationLoss(20, 1.25, 1.0), ValidationLoss(30, 1.4, 1.0))
    loss, *others = curves(run.steps, points)
    assert loss != without[0]
    assert others == without[1:], "learning rate, throughput and memory"
    facts = {fact.name: (fact.value, fact.detail) for fact in training_facts(replace(run, validation=points))}
    assert facts["Lowest validation loss"] == ("1.25", "after step 20")
    assert "Lowest validation loss" not in {fact.name for fact in training_facts(run)}


def test_the_settings_name_the_micro_batch_size(make_bundle: MakeBundle) -> None:
    run = results(make_bundle())
    assert layout_text(run) == "micro-batches of 2,048 tokens"
    training = run.training.model_copy(update={"micro_batch_tokens": 1024, "gradient_checkpointing": True})
    assert layout_text(replace(run, training=training)) == "micro-batches of 1,024 tokens, gradient checkpointing"
    alone = run.training.model_copy(update={"packed": False})
    assert layout_text(replace(run, training=alone)) == "micro-batches of one row"
