"""The report: everything in one page, nothing of a row taken for markup, every number the data's."""

import re
import warnings
from dataclasses import replace
from functools import cache
from itertools import pairwise

import html5lib
import pytest
from lxml.html import HtmlElement, fromstring

from finetune_api.evaluation import MetricName
from finetune_api.job import MethodType
from finetune_api.status import GateResult
from finetune_trainer.comparison import Outcome
from finetune_trainer.measured import Answer
from finetune_trainer.pages import LONGEST_TEXT
from finetune_trainer.report import curves, report_page
from finetune_trainer.report_tables import MINUS, layout_text, training_facts
from finetune_trainer.results import Results
from finetune_trainer.validation import ValidationLoss
from finetune_trainer.verdict import METRIC_TITLES, gain, shown
from tests.unit.finetune_trainer.conftest import MakeBundle
from tests.unit.finetune_trainer.rich import rich_results
from tests.unit.finetune_trainer.tiny import assessment, example, examples, results

ATTACK = '<script>alert(1)</script><img src="https://evil.test/x" onerror=x> & {{ 7 * 7 }} </pre></style>'


@cache
def rich() -> tuple[Results, str]:
    """A run with everything the report can show, and its page."""
    run = rich_results()
    return run, report_page(run)


def page_of(run: Results) -> HtmlElement:
    return fromstring(report_page(run))


def text(element: HtmlElement) -> str:
    return " ".join(element.text_content().split())


def figures(page: HtmlElement, section: str) -> list[list[str]]:
    """The cells of the section's tables of figures."""
    rows = page.xpath(f"//section[@id='{section}']//table[contains(@class, 'figures')]//tr")
    return [[text(cell) for cell in row] for row in rows]


def facts(page: HtmlElement, section: str) -> dict[str, str]:
    """Names and values of the section's figures and of its tables of details."""
    names = page.xpath(f"//section[@id='{section}']//dt | //section[@id='{section}']//table[@class='details']//th")
    return {text(name): text(name.getnext()) for name in names}


def test_the_verdict_comes_first() -> None:
    run, html = rich()
    page = fromstring(html)
    heading = page.xpath("//h1")[0]
    assert text(heading) == run.evaluation.verdict
    assert html.index("<h1") < min(html.index(tag) for tag in ("<table", "<svg", "<dl", "<section"))
    assert run.comparison.outcome is Outcome.BETTER
    assert page.xpath("//header/@class") == ["good-news"]


def test_the_page_needs_nothing_beside_itself() -> None:
    _, html = rich()
    page = fromstring(html)
    targets = page.xpath("//@src | //@href | //@srcset | //@action | //@data | //@poster")
    assert targets
    assert all(target.startswith("#") for target in targets)
    assert {target[1:] for target in targets} <= set(page.xpath("//@id")), "every place the contents name is there"
    assert not page.xpath("//script | //link | //iframe | //img | //object | //embed | //form")
    assert not re.search(r"https?://|@import|url\(|javascript:", html)


def test_it_is_html_that_no_browser_has_to_mend() -> None:
    _, html = rich()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        html5lib.HTMLParser(strict=True).parse(html)


def test_who_cannot_see_it_is_told_the_same() -> None:
    _, html = rich()
    page = fromstring(html)
    assert page.xpath("/html/@lang") == ["en"]
    assert all(svg.find("title") is not None and svg.get("role") == "img" for svg in page.xpath("//svg"))
    assert not page.xpath("//th[not(@scope)]")
    levels = [int(heading.tag[1]) for heading in page.xpath("//h1 | //h2 | //h3 | //h4")]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels)), "no level is left out"


def test_rows_and_answers_are_text_and_nothing_else(make_bundle: MakeBundle) -> None:
    row = example(12, 4, source=ATTACK, texts=(ATTACK, ATTACK))
    run = results(make_bundle(), [row, *examples([12] * 3)])
    run.base.answers[0] = Answer(ATTACK, truncated=False, matches=False)
    run.tuned.answers[0] = Answer(ATTACK, truncated=True, matches=False)
    run = replace(run, serving=replace(run.serving, rendered=ATTACK, beginning=ATTACK, stop_tokens={3: ATTACK}))
    html = report_page(replace(run, base_license={"license": ATTACK}))
    page = fromstring(html)
    assert not page.xpath("//script | //img | //@onerror")
    whole = page.text_content()
    assert whole.count(ATTACK) == 9, "as it is: prompt, source, expected, base, tuned, three of serving, licence"


def test_every_figure_of_the_results_is_the_evaluations() -> None:
    run, html = rich()
    evaluation = run.evaluation
    assert evaluation.base
    assert evaluation.tuned
    rows = {cells[0]: cells[1:] for cells in figures(fromstring(html), "results")}
    for name, row in run.comparison.metrics.items():
        cells = rows[METRIC_TITLES[name]]
        for cell, estimate in ((cells[0], row.base), (cells[1], row.tuned)):
            assert estimate
            assert cell.startswith(shown(name, estimate.value))
            assert cell.endswith(f"{shown(name, estimate.interval.low)} to {shown(name, estimate.interval.high)}")
        assert row.over_base
        assert cells[2].replace(MINUS, "-").replace("95%", "(95%") + ")" == gain(name, row.over_base)
    assert text(fromstring(html).xpath("//section[@id='results']//p")[0]).startswith(
        f"{run.comparison.gained} rows only the tuned model answers word for word, {run.comparison.lost} only the base"
    )


def test_a_change_for_the_worse_looks_like_one(make_bundle: MakeBundle) -> None:
    run = results(make_bundle())
    swapped = assessment(run.held_out, run.tuned, run.base)
    page = page_of(replace(run, assessment=swapped))
    assert page.xpath("//header/@class") == ["bad-news"]
    changes = page.xpath("//table[@class='figures']//td[3]")
    assert {(cell.get("class"), text(cell)[0]) for cell in changes[:4]} == {("bad", MINUS)}


def test_a_model_that_did_not_pass_its_gates_says_so_at_the_top(make_bundle: MakeBundle) -> None:
    run = results(make_bundle())
    gate = GateResult(metric=MetricName.EXACT_MATCH, bound="Min", limit=0.9, value=0.5, passed=False)
    evaluation = run.evaluation.model_copy(update={"gates": [gate], "passed": False})
    page = page_of(replace(run, assessment=replace(run.assessment, evaluation=evaluation)))
    assert "not to be used. ExactMatch is 0.5; a gate wants it at least 0.9." in text(page.xpath("//header")[0])


def test_training_data_and_provenance_are_told_as_they_were() -> None:
    run, html = rich()
    page = fromstring(html)
    training, data, provenance = (facts(page, section) for section in ("training", "data", "provenance"))
    assert training["Steps"] == "420 3 epochs"
    assert training["Throughput"] == "9,043 tokens per second"
    preflight = run.prepared.preflight
    assert preflight.splits
    assert data["Rows read"] == f"{preflight.rows:,}"
    assert data["Rows learned from"] == f"{preflight.splits.train:,}"
    assert data["Exact copies dropped"] == "84"
    assert provenance["Spec digest"] == run.bundle.spec_digest
    assert provenance["Base model"].endswith("8,030,261,248 parameters, licence llama3.1")
    assert facts(page, "recipe")["Batch"] == "16 rows a step, 2,048 tokens at a time"


def test_what_merging_changed_is_shown_where_there_is_something() -> None:
    run, html = rich()
    assert run.evaluation.merged
    finding = fromstring(html).xpath("//li[@class='bad-news']")
    assert [text(item) for item in finding] == [run.evaluation.merged.message]


def test_the_page_says_how_to_serve() -> None:
    run, html = rich()
    page = fromstring(html)
    blocks = [block.text_content() for block in page.xpath("//section[@id='serving']//pre")]
    # HTML drops a newline that follows the tag, and no more than that.
    assert blocks == [run.serving.rendered, run.serving.beginning]
    assert facts(page, "serving")["Answers end at"] == "<|eot_id|> (128009), <|end_of_text|> (128001)"


def test_it_works_for_a_cluster_job_a_local_run_and_qlora(make_bundle: MakeBundle) -> None:
    job = {"namespace": "team-a", "name": "tickets", "uid": "0123-4567"}
    assert "team-a / tickets" in report_page(results(make_bundle(job=job)))
    assert "Local run" in report_page(results(make_bundle()))
    assert "All ran in bfloat16" in report_page(results(make_bundle()))
    four_bit = report_page(results(make_bundle(method={"type": MethodType.QLORA})))
    assert "not in bfloat16" in four_bit


@pytest.mark.parametrize("steps", [1, 2, 30, 5000])
def test_any_number_of_steps_can_be_drawn(make_bundle: MakeBundle, steps: int) -> None:
    html = report_page(results(make_bundle(), steps=steps))
    points = [float(number) for line in re.findall(r'points="([^"]*)"', html) for number in re.split("[ ,]", line)]
    assert points
    assert all(0 <= number <= 640 for number in points)
    assert len(html) < 300_000, "of a size to be mailed"


def test_a_text_of_any_length_is_shown_cut(make_bundle: MakeBundle) -> None:
    row = example(12, 4, texts=("x" * 100_000, "y"))
    assert "x" * (LONGEST_TEXT + 1) not in report_page(results(make_bundle(), [row, example(12, 4)]))


def test_the_validation_curve_lies_over_the_loss_and_its_best_is_told(make_bundle: MakeBundle) -> None:
    run = results(make_bundle())
    without = curves(run.steps)
    points = (ValidationLoss(10, 1.5, 1.0), ValidationLoss(20, 1.25, 1.0), ValidationLoss(30, 1.4, 1.0))
    loss, *others = curves(run.steps, points)
    assert loss != without[0]
    assert others == without[1:], "learning rate, throughput and memory"
    facts = {fact.name: (fact.value, fact.detail) for fact in training_facts(replace(run, validation=points))}
    assert facts["Lowest validation loss"] == ("1.25", "after step 20")
    assert "Lowest validation loss" not in {fact.name for fact in training_facts(run)}


def test_the_recipe_says_how_steps_lay_in_memory(make_bundle: MakeBundle) -> None:
    run = results(make_bundle())
    assert layout_text(run) == "2,048 tokens at a time"
    training = run.training.model_copy(update={"micro_batch_tokens": 1024, "gradient_checkpointing": True})
    assert layout_text(replace(run, training=training)).startswith("1,024 tokens at a time, activations computed again")
