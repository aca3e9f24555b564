"""URIs as the API accepts them."""

import re
import unicodedata
from typing import Annotated, NamedTuple

from pydantic import Field

from finetune_api.model import SchemaKeys, rules

BUCKET = "[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
"""Name of a bucket according to the S3 naming rules: 3 to 63 lower-case letters, digits, dots and hyphens."""
REPOSITORY = "[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
"""ORG/NAME of a model or data set on a hub."""
CLAIM = "[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
"""Name of a PersistentVolumeClaim."""


class Shape(NamedTuple):
    """Format of one kind of URI."""

    pattern: str
    """A regular expression in the syntax that RE2 and Python share."""
    wanted: str
    """The message for a URI that does not match."""


_PATH = "/[^*?]*[^*?/]"
_S3_FOLDER = f"s3://{BUCKET}{_PATH}/?"
BUCKET_FOLDER = Shape(f"^{_S3_FOLDER}$", "must be s3://BUCKET/PREFIX, for example s3://acme-models/tickets")
FOLDER = Shape(
    f"^({_S3_FOLDER}|pvc://{CLAIM}{_PATH}/?)$",
    "must be s3://BUCKET/PREFIX or pvc://CLAIM/PATH, for example s3://acme-models/tickets",
)
MODEL = Shape(
    f"^({_S3_FOLDER}|hf://{REPOSITORY}/?|pvc://{CLAIM}({_PATH})?/?)$",
    "must be s3://BUCKET/PREFIX, hf://ORG/NAME or pvc://CLAIM/PATH, for example s3://acme-models/tickets or "
    "hf://HuggingFaceTB/SmolLM2-135M; a branch, tag or commit belongs in the field revision",
)
FILES = Shape(
    f"^(s3://{BUCKET}|hf://datasets/{REPOSITORY}|pvc://{CLAIM})/.+[.]"
    "((jsonl|ndjson|json|csv|tsv)([.](gz|zst))?|parquet)$",
    "must be s3://BUCKET/KEY, hf://datasets/ORG/NAME/PATH or pvc://CLAIM/PATH, ending in .jsonl, .ndjson, .json, .csv "
    "or .tsv, optionally followed by .gz or .zst, or in .parquet; KEY and PATH may contain the wildcards *, ? and **, "
    "for example s3://acme-data/tickets/*.jsonl",
)
_EDGES = "must not have white space or invisible characters at its ends or at the start of its key: remove them"
_CONTROLS = "must not contain a line break or another control character: remove it"
_DOTS = "must not contain a folder named . or .., which storages treat differently: write the real folder"
_TIDY = (
    (r"!self.matches(r'^[\pZ\pC]|^[a-z0-9]+://[^/]*/[\pZ\pC]|[\pZ\pC]/?$')", _EDGES),
    (r"!self.matches(r'[\p{Cc}\p{Zl}\p{Zp}]')", _CONTROLS),
    (r"!self.matches(r'/[.][.]?(/|$)')", _DOTS),
)


def _rules(shape: Shape) -> SchemaKeys:
    return SchemaKeys(rules((f"self.matches('{shape.pattern}')", shape.wanted), *_TIDY))


Uri = Annotated[str, Field(min_length=1, max_length=1024)]
PrefixUri = Annotated[Uri, _rules(FOLDER)]
BucketPrefixUri = Annotated[Uri, _rules(BUCKET_FOLDER)]
ModelUri = Annotated[Uri, _rules(MODEL)]
FileUri = Annotated[Uri, _rules(FILES)]


def has_scheme(uri: str) -> bool:
    """Return whether a text is meant as a URI and not as a local path: whether it begins with a scheme and a colon.

    The scheme may be unknown. A path whose first part contains a colon is written with ./ at its beginning, as in
    RFC 3986."""
    return re.match("[A-Za-z][A-Za-z0-9+.-]*:", uri) is not None


def misspelled(uri: str, shape: Shape) -> str | None:
    """Return why the API server would refuse a URI, as the end of a sentence; None if it would accept the URI.

    The rules of the API server are the same. This is a second implementation because Python's regular expressions do
    not support Unicode categories."""
    if not re.fullmatch(shape.pattern, uri):
        return shape.wanted
    key = uri.partition("://")[2].partition("/")[2]
    if any(_category(letter)[0] in "ZC" for letter in (*key[:1], *key.removesuffix("/")[-1:], *key[-1:])):
        return _EDGES
    if any(_category(letter) in ("Cc", "Zl", "Zp") for letter in key):
        return _CONTROLS
    return _DOTS if {".", ".."} & set(key.split("/")) else None


def _category(letter: str) -> str:
    """Return the Unicode category of a letter. Unassigned code points count as letters, as in RE2."""
    found = unicodedata.category(letter)
    return "Lo" if found == "Cn" else found
