"""Where things lie: URIs as the API takes them."""

from typing import Annotated

from pydantic import Field

from finetune_api.model import SchemaKeys, rules

BUCKET = "[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
"""A bucket's name, by the S3 naming rules: 3 to 63 lower-case letters, digits, dots and hyphens."""

Uri = Annotated[str, Field(min_length=1, max_length=1024)]
PrefixUri = Annotated[
    Uri,
    SchemaKeys(
        rules(
            (
                f"self.matches('^s3://{BUCKET}/[^*?]*[^*?/]/?$')",
                "must be s3://BUCKET/PREFIX, for example s3://acme-models/tickets",
            ),
        )
    ),
]
