"""Places of a job that would get in each other's way."""

from typing import Any

import pytest

from finetune_api.bundle import uris_of
from finetune_api.conflicts import conflicts, normal, overlap
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.uris import FILES, FOLDER, misspelled

ROWS = "s3://data/rows.jsonl"
GENERAL = {"name": "general", "metric": "ExactMatch", "maxDrop": 0}


def found(
    output: str = "s3://results/tickets",
    model: str = "s3://models/base",
    lora: dict[str, Any] | None = None,
    regression: list[dict[str, Any]] | None = None,
    **dataset: Any,
) -> list[str]:
    """Fields and messages of the conflicts, each in one string."""
    spec = FineTuneJobSpec.model_validate(
        {
            "model": {"uri": model},
            "method": {"lora": lora or {}},
            "dataset": {"train": [{"uri": ROWS}]} | dataset,
            "evaluation": {"regression": regression} if regression else {},
            "output": {"uri": output},
        }
    )
    return [f"{field}: {finding} {remedy}" for field, finding, remedy in conflicts(spec, "/home/me")]


def test_places_apart_are_fine() -> None:
    assert (
        found(test=[{"uri": "s3://data/test.jsonl"}], regression=[GENERAL | {"uri": "s3://data/general.jsonl"}]) == []
    )


@pytest.mark.parametrize(
    ("uri", "output"),
    [
        ("s3://data/tickets/*.jsonl", "s3://data/tickets"),
        ("s3://data/tickets/*.jsonl", "s3://data/tickets/"),
        ("s3://data/tickets/*.jsonl", "s3://data//tickets//"),
        ("s3://data/tickets/*.jsonl", "s3://data/x/../tickets"),
        ("s3://data/./tickets/*.jsonl", "s3://data/tickets"),
        ("s3://data/tickets/*.jsonl", "s3://data/."),
        ("s3://data/**/*.parquet", "s3://data/runs/7"),
        ("s3://data/*/samples.jsonl", "s3://data/runs"),
        ("s3://data/rows.jsonl", "s3://data/rows.jsonl"),
        ("s3://data/rows.jsonl", "s3://data/rows.jsonl/run"),
        ("s3://data/team/rows.jsonl", "s3://data/team"),
        ("/data/tickets/*.jsonl", "/data/tickets"),
        ("data/tickets/*.jsonl", "./data/tickets/"),
        ("data/*.jsonl", "/home/me/data"),
        ("/home/me/../me/data/*.jsonl", "data"),
        ("data/*.jsonl", "."),
        ("//data/*.jsonl", "/data"),
        ("/data/*.jsonl", "/"),
    ],
)
def test_an_output_among_the_rows_is_named_whichever_source_they_are_of(uri: str, output: str) -> None:
    source = [{"uri": uri}]
    for field, arguments in {
        "spec.dataset.train[0]": {"train": source},
        "spec.dataset.validation[0]": {"validation": source},
        "spec.dataset.test[0]": {"test": source},
        "spec.evaluation.regression[0]": {"regression": [GENERAL | {"uri": uri}]},
    }.items():
        others = {"train": [{"uri": "s3://elsewhere/rows.jsonl"}]} | arguments
        (message,) = found(output=output, **others)
        assert message == (
            f"spec.output.uri: {field} ({uri}) reads files from {output}. The next run would read the results of this "
            "job as rows. Choose a prefix outside of that folder."
        )


@pytest.mark.parametrize(
    ("uri", "output"),
    [
        ("s3://data/tickets/*.jsonl", "s3://data/tickets-2"),
        ("s3://data/tickets/*.jsonl", "s3://data/tickets/run-1"),
        ("s3://data/tickets/*.jsonl", "s3://other/tickets"),
        ("s3://data/rows.jsonl", "s3://data/rows"),
        ("/data/tickets/*.jsonl", "s3://data/tickets"),
        ("data/*.jsonl", "/data"),
    ],
)
def test_an_output_next_to_the_rows_is_accepted(uri: str, output: str) -> None:
    assert found(output=output, train=[{"uri": uri}]) == []


@pytest.mark.parametrize("output", ["s3://m/base", "s3://m/base/", "s3://m", "s3://m/x/../base", "s3://m//base"])
def test_an_output_that_would_overwrite_a_model_is_named(output: str) -> None:
    folder, wanted = (
        "s3://m/base",
        "or a folder above it. The results could overwrite that folder. Choose another prefix.",
    )
    embedding = {"embeddingModel": {"uri": folder}}
    for field, arguments in {
        "spec.model.uri": {"model": folder},
        "spec.method.lora.from": {"lora": {"from": folder}},
        "spec.dataset.deduplicate.embeddingModel.uri": {"deduplicate": embedding},
    }.items():
        assert found(output=output, **arguments) == [
            f"spec.output.uri: {output} is the folder of {field} ({folder}) {wanted}"
        ]


def test_an_output_below_the_model_or_next_to_an_earlier_adapter_is_accepted() -> None:
    assert found(output="s3://m/base/tuned", model="s3://m/base") == []
    assert found(output="s3://m/second", lora={"from": "s3://m/first/adapter"}) == []


@pytest.mark.parametrize(
    ("arguments", "field", "known"),
    [
        ({"train": [{"uri": ROWS}, {"uri": "s3://data//rows.jsonl"}]}, "train[1]", "train[0]"),
        ({"test": [{"uri": ROWS}]}, "test[0]", "train[0]"),
        ({"validation": [{"uri": ROWS}]}, "validation[0]", "train[0]"),
        (
            {"test": [{"uri": "s3://d/t.csv"}], "validation": [{"uri": "s3://d/t.csv", "format": "Text"}]},
            "test[0]",
            "validation[0]",
        ),
    ],
)
def test_a_source_named_twice_is_named_with_the_first(arguments: dict[str, Any], field: str, known: str) -> None:
    (message,) = found(**arguments)
    assert message.startswith(f"spec.dataset.{field}: ")
    assert message.endswith(f"is already used by spec.dataset.{known}. Remove or correct one of the two.")


def test_a_regression_set_of_learned_rows_or_twice_by_one_metric_is_named() -> None:
    (learned,) = found(regression=[GENERAL | {"uri": ROWS}])
    assert "is already used by spec.dataset.train[0]" in learned
    sets = [GENERAL | {"uri": "s3://data/general.jsonl", "name": name} for name in ("one", "two")]
    (twice,) = found(regression=sets)
    assert twice.startswith("spec.evaluation.regression[1]: ")


def test_one_file_may_be_read_for_several_purposes() -> None:
    columns = [{"completion": name} for name in ("answer", "summary")]
    general = {"uri": "s3://data/test.jsonl"}
    assert (
        found(
            train=[{"uri": ROWS, "columns": each} for each in columns],
            test=[general],
            regression=[GENERAL | general, GENERAL | general | {"name": "other", "metric": "TokenF1"}],
        )
        == []
    )


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://b/a//b/", "s3://b/a/b"),
        ("s3://b/../a", "s3://b/a"),
        ("s3://b/", "s3://b"),
        ("s3://b", "s3://b"),
        ("a/./b/", "/home/a/b"),
        ("..", ""),
        ("/", ""),
        ("//a", "/a"),
    ],
)
def test_one_place_has_one_spelling(uri: str, expected: str) -> None:
    assert normal(uri, "/home") == expected


@pytest.mark.parametrize("name", ["a", "a b", "a/b", "ü+%20", "..a/b..", "a//b", "नमस्ते", "👩‍👩‍👧"])
def test_names_people_give_are_taken(name: str) -> None:
    assert misspelled(f"s3://data/{name}", FOLDER) is None
    assert misspelled(f"s3://data/{name}/", FOLDER) is None
    assert misspelled(f"s3://data/{name}/*.jsonl", FILES) is None


@pytest.mark.parametrize(
    ("uri", "part"),
    [
        ("s3://data/a ", "white space"),
        ("s3://data/a /", "white space"),
        ("s3://data/ a", "white space"),
        ("s3://data/a\n", "white space"),
        ("s3://data/a\u200b", "invisible"),
        (" s3://data/a", "s3://BUCKET/PREFIX"),
        ("s3://data/a\tb", "control character"),
        ("s3://data/a\u2028b", "control character"),
        ("s3://data/../a", "named . or .."),
        ("s3://data/a/.", "named . or .."),
        ("s3:///a", "s3://BUCKET/PREFIX"),
        ("s3://data/", "s3://BUCKET/PREFIX"),
        ("s3://data", "s3://BUCKET/PREFIX"),
        ("hf://a/b", "s3://BUCKET/PREFIX"),
        ("", "s3://BUCKET/PREFIX"),
    ],
)
def test_a_uri_that_cannot_be_meant_is_refused_with_the_remedy(uri: str, part: str) -> None:
    assert part in (misspelled(uri, FOLDER) or "")


def test_every_uri_of_a_spec_is_looked_at() -> None:
    spec = FineTuneJobSpec.model_validate(
        {
            "model": {"uri": "1"},
            "method": {"lora": {"from": "2"}},
            "dataset": {
                "train": [{"uri": "3"}],
                "validation": [{"uri": "4"}],
                "test": [{"uri": "5"}],
                "deduplicate": {"embeddingModel": {"uri": "6"}},
            },
            "evaluation": {"regression": [GENERAL | {"uri": "7"}]},
            "output": {"uri": "8"},
        }
    )
    assert sorted(uris_of(spec).values()) == list("12345678")


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("s3://b/x", "s3://b/x", True),
        ("s3://b/x", "s3://b/x/", True),
        ("s3://b/x", "s3://b//x", True),
        ("s3://b/x", "s3://b/y/../x", True),
        ("s3://b/x", "s3://b/x/y/z", True),
        ("s3://b/x", "s3://b/x//y", True),
        ("s3://b/x", "s3://b/xy", False),
        ("s3://b/x", "s3://b/x-y/z", False),
        ("s3://b/x/y", "s3://b/x/z", False),
        ("s3://b/x", "s3://c/x", False),
        ("s3://b/x", "s3://b/X", False),
    ],
)
def test_two_outputs_overlap_where_one_is_the_other_or_inside_it(first: str, second: str, expected: bool) -> None:
    assert overlap(first, second) is overlap(second, first) is expected
