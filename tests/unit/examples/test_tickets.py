"""The demo's rows are reproducible and all different, and their answers cannot be memorised."""

import itertools
import json
import subprocess
import sys

from examples.demo.target import ROOT
from examples.tickets.generate import ISSUES, PRODUCTS, TONES, tickets


def test_the_same_seed_gives_the_same_rows_and_another_seed_others() -> None:
    assert list(tickets(50, seed=7)) == list(tickets(50, seed=7))
    assert {row["ticket"] for row in tickets(50, 7)}.isdisjoint(row["ticket"] for row in tickets(50, 8))


def test_a_larger_number_only_appends_rows() -> None:
    assert list(tickets(20, seed=1)) == list(itertools.islice(tickets(400, seed=1), 20))


def test_no_ticket_occurs_twice() -> None:
    rows = [row["ticket"] for row in tickets(2000, seed=0)]
    assert len(set(rows)) == 2000


def test_the_json_has_its_keys_in_order_and_only_known_words() -> None:
    for row in tickets(300, seed=3):
        answer = json.loads(row["json"])
        assert list(answer) == ["product", "issue", "urgent", "order"]
        assert answer["product"] in PRODUCTS
        assert answer["issue"] in ISSUES
        assert answer["urgent"] in TONES


def test_the_order_number_is_in_the_ticket_or_is_null() -> None:
    orders = [(json.loads(row["json"])["order"], row["ticket"]) for row in tickets(300, seed=4)]
    assert all(str(order) in ticket for order, ticket in orders if order is not None)
    assert any(order is None for order, _ in orders)


def test_the_answers_of_held_out_rows_rarely_occur_in_training_rows() -> None:
    rows = list(tickets(480, seed=0))
    learned = {row["json"] for row in rows[:384]}
    assert sum(row["json"] in learned for row in rows[384:]) / 96 < 0.05


def test_each_wording_has_only_one_meaning() -> None:
    for table in (PRODUCTS, ISSUES, TONES):
        wordings = [wording for several in table.values() for wording in several if wording]
        assert len(wordings) == len(set(wordings))


def test_the_command_writes_one_row_per_line_and_ends_without_an_error_when_the_pipe_closes() -> None:
    command = f"{sys.executable} {ROOT}/examples/tickets/generate.py --rows 5000 --seed 2 | head -n 3"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in result.stdout.splitlines()] == list(tickets(3, seed=2))
    assert result.stderr == ""
