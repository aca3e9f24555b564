"""The demo's rows: reproducible, all different, and nothing that could be answered from memory."""

import itertools
import json
import subprocess
import sys

from examples.demo.target import ROOT
from examples.tickets.generate import ISSUES, PRODUCTS, TONES, tickets


def test_the_same_seed_gives_the_same_rows_and_another_seed_others() -> None:
    assert list(tickets(50, seed=7)) == list(tickets(50, seed=7))
    assert {row["ticket"] for row in tickets(50, 7)}.isdisjoint(row["ticket"] for row in tickets(50, 8))


def test_more_rows_begin_with_the_same() -> None:
    assert list(tickets(20, seed=1)) == list(itertools.islice(tickets(400, seed=1), 20))


def test_no_ticket_comes_twice() -> None:
    rows = [row["ticket"] for row in tickets(2000, seed=0)]
    assert len(set(rows)) == 2000


def test_the_json_has_its_keys_in_order_and_only_known_words() -> None:
    for row in tickets(300, seed=3):
        answer = json.loads(row["json"])
        assert list(answer) == ["product", "issue", "urgent", "order"]
        assert answer["product"] in PRODUCTS
        assert answer["issue"] in ISSUES
        assert answer["urgent"] in TONES


def test_the_order_stands_in_the_ticket_to_be_copied_or_is_null() -> None:
    orders = [(json.loads(row["json"])["order"], row["ticket"]) for row in tickets(300, seed=4)]
    assert all(str(order) in ticket for order, ticket in orders if order is not None)
    assert any(order is None for order, _ in orders)


def test_what_is_held_out_asks_for_answers_that_were_never_seen() -> None:
    rows = list(tickets(480, seed=0))
    learned = {row["json"] for row in rows[:384]}
    assert sum(row["json"] in learned for row in rows[384:]) / 96 < 0.05


def test_the_wordings_of_one_thing_belong_to_it_alone() -> None:
    for table in (PRODUCTS, ISSUES, TONES):
        wordings = [wording for several in table.values() for wording in several if wording]
        assert len(wordings) == len(set(wordings))


def test_the_command_writes_one_row_a_line_and_stops_in_silence_when_its_reader_has_enough() -> None:
    command = f"{sys.executable} {ROOT}/examples/tickets/generate.py --rows 5000 --seed 2 | head -n 3"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in result.stdout.splitlines()] == list(tickets(3, seed=2))
    assert result.stderr == ""
