"""The report and the model card: everything in one page, nothing of a row taken for markup."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.job import MethodType
from finetune_trainer.chart import chart, ticks
from finetune_trainer.evaluate import Answer
from finetune_trainer.pages import LONGEST_TEXT
from finetune_trainer.report import SAMPLES_SHOWN, report_page, shown_samples
from tests.unit.finetune_trainer.conftest import MakeBundle
from tests.unit.finetune_trainer.tiny import example, examples, results

ATTACK = '<script>alert(1)</script><img src="https://evil.test/x"> & {{ 7 * 7 }}'


class Page(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_verdict_comes_first(make_bundle: MakeBundle) -> None:
    run = results(make_bundle())
    page = report_page(run)
    assert page.index(run.comparison.evaluation.verdict or "?") < page.index("<table")
    assert "rose from 0% to 50%" in page


def test_the_page_needs_nothing_beside_itself(make_bundle: MakeBundle) -> None:
    html = report_page(results(make_bundle()))
    page = Page(html)
    assert page.links == []
    assert not {"script", "link", "iframe", "img", "object", "embed"} & set(page.tags)
    assert not re.search(r"https?://|@import|url\(", html)


def test_rows_and_answers_are_text_and_nothing_else(make_bundle: MakeBundle) -> None:
    row = replace(example(12, 4), prompt=ATTACK, answer=ATTACK, source=ATTACK)
    run = results(make_bundle(), [row, *examples([12] * 3)])
    run.base.answers[0] = Answer(ATTACK, truncated=False, matches=False)
    run.tuned.answers[0] = Answer(ATTACK, truncated=True, matches=False)
    page = Page(report_page(run))
    assert not {"script", "img"} & set(page.tags)
    assert page.text.count(ATTACK) == 5, "prompt, source, expected, base and tuned, as they are"


def test_it_works_for_a_cluster_job_a_local_run_and_qlora(make_bundle: MakeBundle) -> None:
    job = {"namespace": "team-a", "name": "tickets", "uid": "0123-4567"}
    assert "team-a / tickets" in report_page(results(make_bundle(job=job)))
    assert "Local run" in report_page(results(make_bundle()))
    assert "Both ran in bfloat16" in report_page(results(make_bundle()))
    four_bit = report_page(results(make_bundle(method={"type": MethodType.QLORA})))
    assert "not in bfloat16" in four_bit


@pytest.mark.parametrize("steps", [1, 2, 30, 500])
def test_any_number_of_steps_can_be_drawn(make_bundle: MakeBundle, steps: int) -> None:
    html = report_page(results(make_bundle(), steps=steps))
    points = [float(number) for line in re.findall(r'points="([^"]*)"', html) for number in re.split("[ ,]", line)]
    assert points
    assert all(0 <= number <= 640 for number in points)


@given(st.floats(1e-9, 1e9))
def test_ticks_are_few_round_and_reach_the_highest_value(highest: float) -> None:
    found = ticks(highest)
    assert found[0] == 0
    assert found[-1] >= highest * (1 - 1e-6)
    assert 3 <= len(found) <= 7
    assert f"{found[1]:e}"[:8] in ("1.000000", "2.000000", "5.000000")
    assert found == pytest.approx([i * found[1] for i in range(len(found))])


@given(st.lists(st.floats(0, 100), min_size=1, max_size=300))
def test_every_point_lies_within_the_axes(values: list[float]) -> None:
    drawn = chart(values, height=100, trend=True)
    for line in (drawn.line, drawn.trend):
        for point in line.split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= drawn.width
            assert 0 <= y <= 100


def test_samples_show_some_of_each_kind(make_bundle: MakeBundle) -> None:
    run = results(make_bundle(), examples([12] * 100))
    for row in (90, 91):
        run.base.answers[row] = Answer("right", truncated=False, matches=True)
    shown = shown_samples(run)
    kinds = {(sample.base.matches, sample.tuned.matches) for sample in shown}
    assert len(shown) == SAMPLES_SHOWN
    assert kinds == {(False, True), (True, False), (False, False)}


def test_a_text_of_any_length_is_shown_cut(make_bundle: MakeBundle) -> None:
    row = replace(example(12, 4), prompt="x" * 100_000)
    assert "x" * (LONGEST_TEXT + 1) not in report_page(results(make_bundle(), [row, example(12, 4)]))
