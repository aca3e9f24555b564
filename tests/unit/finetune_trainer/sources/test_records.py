"""Every kind of file is read to the same rows, a few at a time, and what is wrong with it is said with its place."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from finetune_api.bundle import Bundle
from finetune_api.reasons import FailureReason
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.sources import json_rows
from finetune_trainer.sources.findings import Findings, InvalidRow
from finetune_trainer.sources.json_rows import array_items, json_lines
from finetune_trainer.sources.records import read_records
from finetune_trainer.sources.tables import csv_rows
from finetune_trainer.storage.job_storage import JobStorage, open_storage
from tests.unit.finetune_trainer.conftest import S3

STORAGE = open_storage(
    Bundle.model_validate(
        {"spec": {"model": {"uri": "m"}, "dataset": {"train": [{"uri": "x.jsonl"}]}, "output": {"uri": "o"}}}
    )
)
ROWS = [{"prompt": f'q{i}, "ü"\n;', "completion": f"{i}\t"} for i in range(600)]


def as_csv(rows: list[dict[str, str]], delimiter: str = ",", end: str = "\n") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows: list[Any]) -> bytes:
    data = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), data, row_group_size=250)
    return data.getvalue()


def zstd(data: bytes) -> bytes:
    packed: bytes = pyarrow.compress(data, "zstd", asbytes=True)
    return packed


WRITERS: dict[str, Callable[[list[dict[str, str]]], bytes]] = {
    "jsonl": lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode(),
    "json": lambda rows: json.dumps(rows, indent=1).encode(),
    "csv": as_csv,
    "parquet": as_parquet,
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstd}
NAMES = [kind + packed for kind in WRITERS for packed in PACKERS if kind != "parquet" or not packed]


def read(uri: str, storage: JobStorage = STORAGE) -> tuple[list[Any], list[str], Findings]:
    """Values, places and findings."""
    findings = Findings()
    records = list(read_records(storage, uri, findings))
    return [record.value for record in records], [record.place for record in records], findings


def refusal(path: Path) -> str:
    with pytest.raises(TrainerFailure) as caught:
        read(str(path))
    assert caught.value.reason is FailureReason.DATASET_INVALID
    return caught.value.message


def written(name: str, rows: list[dict[str, str]]) -> bytes:
    kind, _, packed = name.partition(".")
    return PACKERS[f".{packed}" if packed else ""](WRITERS[kind](rows))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_rows_are_read_from_every_kind_of_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"rows.{name}"
    path.write_bytes(written(name, ROWS))
    values, places, findings = read(str(path))
    assert values == ROWS
    assert findings.rows == len(ROWS)
    # In a .csv file each row takes two lines here, after the line with the columns' names.
    assert places[3] == f"{path}:{8 if name.startswith('csv') else 4}"


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_file_is_read_from_s3(s3: S3, tmp_path: Path, name: str) -> None:
    bucket = s3.bucket(f"records-{name.replace('.', '-')}")
    s3.client().put_object(Bucket=bucket, Key=f"rows.{name}", Body=written(name, ROWS))
    bundle = Bundle.model_validate(
        {
            "spec": {"model": {"uri": "m"}, "dataset": {"train": [{"uri": "x.jsonl"}]}, "output": {"uri": "o"}},
            "storages": [{"buckets": ["*"], "endpoint": s3.endpoint, "credentialsSecretName": "owner"}],
        }
    )
    assert read(f"s3://{bucket}/rows.{name}", open_storage(bundle, s3.secrets_dir))[0] == ROWS


@pytest.mark.parametrize("name", [name for name in NAMES if name != "jsonl"])
def test_a_file_cut_short_is_never_taken_for_a_whole_one(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"rows.{name}"
    data = written(name, ROWS)
    path.write_bytes(data[: len(data) * 2 // 3])
    if name == "csv":  # as for lines of JSON, only the last row shows it
        assert read(str(path))[2].invalid == 1
    else:
        assert str(path) in refusal(path)


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.csv.zst", "rows.parquet"])
def test_a_file_of_another_kind_than_its_name_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"not what the name says " * 9)
    assert str(path) in refusal(path)


def test_several_compressed_parts_in_one_file_are_all_read(tmp_path: Path) -> None:
    for end, pack in ((".gz", gzip.compress), (".zst", zstd)):
        path = tmp_path / f"rows.jsonl{end}"
        path.write_bytes(pack(WRITERS["jsonl"](ROWS[:200])) + pack(WRITERS["jsonl"](ROWS[200:])))
        assert read(str(path))[0] == ROWS


@pytest.mark.parametrize("name", ["t.jsonl", "t.json", "t.csv"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_utf_16_is_named(tmp_path: Path, name: str, encoding: str) -> None:
    path = tmp_path / name
    mark = b"" if encoding == "utf-16" else b"\xfe\xff"
    path.write_bytes(mark + '[{"prompt": "a"}]'.encode(encoding))
    assert "is UTF-16 text. Save it as UTF-8" in refusal(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=9,
)


@given(values=st.lists(json_values, max_size=6), indent=st.none() | st.integers(0, 3), ascii=st.booleans())
def test_an_array_read_in_small_pieces_gives_the_values_a_whole_parse_gives(
    values: list[Any], indent: int | None, ascii: bool
) -> None:
    data = json.dumps(values, indent=indent, ensure_ascii=ascii).encode("utf-8", "surrogatepass")
    try:
        data.decode()
    except UnicodeDecodeError:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "CHUNK_BYTES", 3)
        assert list(array_items(io.BytesIO(data), "t.json")) == list(enumerate(values, start=1))


@given(data=st.binary(max_size=40) | st.text('[]{},:"1e-. nul\\', max_size=30).map(str.encode))
def test_any_bytes_as_an_array_end_in_values_or_a_typed_failure(data: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "CHUNK_BYTES", 3)
        try:
            found = [value for _, value in array_items(io.BytesIO(data), "t.json")]
        except TrainerFailure:
            return
    whole = json.loads(data.decode("utf-8-sig"))
    assert len(found) == len(whole) if isinstance(whole, list) else found


@given(values=st.lists(json_values, max_size=6), end=st.sampled_from(["\n", "\r\n", "\n\n \n"]))
def test_lines_of_json_are_read_whatever_ends_them(values: list[Any], end: str) -> None:
    values = ["", *values]  # an array of objects in the first line is taken for the whole file
    data = "".join(json.dumps(value) + end for value in values).encode()
    assert [value for _, value in json_lines(io.BytesIO(data), "t.jsonl")] == values


fields = st.text(st.characters(codec="utf-8", exclude_characters="\0\ufeff"), max_size=8)


@given(rows=st.lists(st.tuples(fields, fields), min_size=1, max_size=5), delimiter=st.sampled_from(",;\t|"))
def test_a_table_written_by_the_standard_library_is_read_back(rows: list[tuple[str, str]], delimiter: str) -> None:
    named = [{"prompt": first, "completion": second} for first, second in rows]
    data = as_csv(named, delimiter, end="\r\n")
    kept = [row for row in named if any(field.strip() for field in row.values())]
    assert [value for _, value in csv_rows(io.BytesIO(data), "t.csv")] == kept


@given(data=st.binary(max_size=60) | st.text('a",;\n\r\t', max_size=40).map(str.encode))
def test_any_bytes_as_a_table_end_in_rows_or_named_faults(data: bytes) -> None:
    try:
        for _, value in csv_rows(io.BytesIO(b"a,b\n" + data), "t.csv"):
            assert isinstance(value, InvalidRow) or list(value) == ["a", "b"]
    except TrainerFailure:  # a quoted field without an end
        if b'"' not in data:
            raise


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"a", "line 3: the number of fields differs from the number of columns (1 fields, 2 columns)"),
        (b"a,b,c", "line 3: the number of fields differs from the number of columns (3 fields, 2 columns)"),
        (b'"a"b,c', "line 3: not CSV"),
        (b"a,\xff", "line 3: not UTF-8"),
    ],
)
def test_a_bad_row_of_a_table_is_named_and_the_next_is_read(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbfprompt,completion\nq,a\n" + line + b"\n\nr,b\n")
    values, places, findings = read(str(path))
    assert [value["prompt"] for value in values] == ["q", "r"]
    assert places[1] == f"{path}:5"
    with pytest.raises(TrainerFailure) as caught:
        findings.raise_if_invalid()
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"", "line 1 has no column names"),
        (b",\n", "line 1 has no column names"),
        (b"prompt, prompt\n", "line 1 names the column prompt twice. Rename one of them"),
    ],
)
def test_a_table_without_names_of_its_columns_is_refused(tmp_path: Path, header: bytes, said: str) -> None:
    (tmp_path / "t.csv").write_bytes(header + b"a,b\n" if header else b"")
    assert said in refusal(tmp_path / "t.csv")


def test_nested_columns_of_parquet_are_lists_and_objects(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]
    (tmp_path / "t.parquet").write_bytes(as_parquet(rows))
    assert read(str(tmp_path / "t.parquet"))[0] == rows
