"""What is done to the rows before they are learned: cleaning, and finding copies."""

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field

from finetune_api.model import ApiModel, SchemaKeys, rules
from finetune_api.uris import PrefixUri


class Mojibake(StrEnum):
    """What happens to text that was decoded with the wrong encoding."""

    KEEP = "Keep"
    REPAIR = "Repair"


class UnicodeForm(StrEnum):
    """The Unicode normalisation form of the text."""

    NFC = "NFC"
    NFKC = "NFKC"
    KEEP = "Keep"


class Whitespace(StrEnum):
    """What happens to white space."""

    KEEP = "Keep"
    TRIM = "Trim"
    COLLAPSE = "Collapse"


class Masked(StrEnum):
    """What is replaced by a mark."""

    EMAIL = "Email"
    CARD = "Card"
    PHONE = "Phone"


Pattern = Annotated[
    str,
    Field(min_length=1, max_length=512),
    SchemaKeys(
        rules(
            (
                "!''.matches(self)",
                "must be a regular expression in RE2's syntax that does not match empty text, for example "
                "(?m)^Sent from my phone$",
            )
        )
    ),
]
Region = Annotated[
    str,
    Field(min_length=2, max_length=2),
    SchemaKeys(rules(("self.matches('^[A-Z]{2}$')", "must be a country's code of two capitals, for example DE"))),
]
SET = SchemaKeys({"x-kubernetes-list-type": "set"})


class Near(StrEnum):
    """What happens to rows that are nearly the same."""

    GROUP = "Group"
    DROP = "Drop"
    KEEP = "Keep"


class Clean(ApiModel):
    """How the text of every message is cleaned, in the rows to learn from and in the held-out ones alike. The steps run
    in the order of the fields; status.preflight.cleaned counts the rows each of them changed."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.phoneRegions) || self.phoneRegions.size() == 0 || (has(self.mask) && 'Phone' in self.mask)",
                "phoneRegions says which phone numbers are masked: add Phone to mask, or remove phoneRegions",
            )
        )
    )

    mojibake: Mojibake = Mojibake.KEEP
    """Repair undoes a wrong decoding, for example cafÃ© for café, with ftfy's fix_encoding. Keep leaves it: rows that
    are about such text would be changed too."""
    unicode: UnicodeForm = UnicodeForm.NFC
    """Unicode normalisation. NFC writes each accented letter in one way, which no reader can see and which many
    tokenizers do themselves; without it the same word is learned as different tokens. NFKC also replaces look-alikes
    (ligatures, full-width letters, superscripts): x² becomes x2. Keep leaves the text as it is."""
    remove: Annotated[list[Pattern], Field(max_length=32), SET] = Field(default=[])
    """Boilerplate to take out: regular expressions in RE2's syntax, which cannot run away on any text. (?m) lets ^ and
    $ match at each line, (?s) lets . match a line end. Words on either side are never joined."""
    whitespace: Whitespace = Whitespace.KEEP
    """Trim writes line ends as a single newline and takes white space from the ends of lines and of the text. Collapse
    also makes each run of white space within a line a single space and more than one empty line one: it destroys the
    indentation of code. Keep leaves it."""
    mask: Annotated[list[Masked], Field(max_length=3), SET] = Field(default=[])
    """What is replaced by a mark: Email by <EMAIL_ADDRESS>, Card by <CREDIT_CARD> (numbers with a card network's length
    and prefix and a right Luhn check digit), Phone by <PHONE_NUMBER> (with a country code, or as written in one of
    phoneRegions). A help, no proof: names and spelled-out numbers stay."""
    phone_regions: Annotated[list[Region], Field(max_length=16), SET] = Field(default=[])
    """Countries whose phone numbers are also masked when written without a country code, as ISO 3166-1 codes, for
    example [DE, US]. A bare run of digits is taken for a phone number only where a word like phone or tel precedes it:
    order numbers look the same."""


class EmbeddingModel(ApiModel):
    """A sentence model."""

    uri: PrefixUri
    """Where it lies, as s3://BUCKET/PREFIX: the folder with config.json, the tokenizer and the weights as .safetensors
    of an encoder such as all-MiniLM-L6-v2. A text's embedding is the mean of its tokens, or its first token where
    1_Pooling/config.json says so."""


KEEP_LOOKS_FOR_NOTHING = (
    "near Keep does not look for near copies: remove embeddingModel and threshold, or set near to Group or Drop"
)


class Deduplicate(ApiModel):
    """What happens to near copies: rows whose texts' Jaccard similarity, over every five words in a row (or characters,
    in texts of 8 to 19 words), is at least the threshold. Case, punctuation and white space do not count, nor does text
    that most rows share. No more than 2% of the rows, or ten, are taken for copies of one another."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.near != 'Keep' || !(has(self.embeddingModel) || has(self.threshold))",
                KEEP_LOOKS_FOR_NOTHING,
            )
        )
    )

    near: Near = Near.GROUP
    """Group keeps every row and puts those that ask nearly the same on one side of the split, so that none is tested on
    what was learned. Drop also keeps only the first of the rows that are nearly the same in question and answer,
    and none to learn from that asks nearly the same as a row named in test or validation. Keep does not look for them;
    rows that ask exactly the same still stay together."""
    embedding_model: EmbeddingModel | None = None
    """Compares rows by their meaning rather than their words: near copies are those whose embeddings have at least the
    threshold's cosine similarity. Slower by far, and for at most 200,000 rows. Default: by words."""
    threshold: Annotated[float, Field(ge=0.5, le=1)] | None = None
    """Similarity from which rows are near copies. Default: 0.8; with embeddingModel 0.9."""

    @property
    def contradiction(self) -> str | None:
        """What the API server has against these fields together; None where it takes them."""
        asks = self.embedding_model is not None or self.threshold is not None
        return KEEP_LOOKS_FOR_NOTHING if self.near is Near.KEEP and asks else None

    @property
    def sentence_model(self) -> str | None:
        """URI of the model to look for near copies with; None where rows are compared by their words or not at all."""
        return None if self.near is Near.KEEP or self.embedding_model is None else self.embedding_model.uri
