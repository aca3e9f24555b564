"""The fields of a FineTuneJob about cleaning rows and finding near-duplicates."""

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
    """Kind of personal data that is replaced by a mark."""

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
    SchemaKeys(rules(("self.matches('^[A-Z]{2}$')", "must be a country code of two capital letters, for example DE"))),
]
SET = SchemaKeys({"x-kubernetes-list-type": "set"})


class Near(StrEnum):
    """What happens to near-duplicate rows."""

    GROUP = "Group"
    DROP = "Drop"
    KEEP = "Keep"


class Clean(ApiModel):
    """How the text of every message is cleaned, in training, validation and test rows. The steps run in the order of
    the fields. status.preflight.cleaned reports how many rows each step changed."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.phoneRegions) || self.phoneRegions.size() == 0 || (has(self.mask) && 'Phone' in self.mask)",
                "phoneRegions has an effect only with Phone in mask: add Phone to mask, or remove phoneRegions",
            )
        )
    )

    mojibake: Mojibake = Mojibake.KEEP
    """What happens to text that was decoded with the wrong encoding. Repair: the text is repaired with fix_encoding of
    ftfy, for example cafÃ© becomes café. Repair also changes rows that discuss such text. Keep: the text is not
    changed."""
    unicode: UnicodeForm = UnicodeForm.NFC
    """Unicode normalisation. NFC: each accented letter gets one single spelling. Readers see no difference, and many
    tokenizers do the same; without NFC the model can learn the same word as different tokens. NFKC: look-alike
    characters (ligatures, full-width letters, superscripts) are also replaced, for example x² becomes x2. Keep: the
    text is not changed."""
    remove: Annotated[list[Pattern], Field(max_length=32), SET] = Field(default=[])
    """Boilerplate to remove: regular expressions in RE2 syntax, whose run time is always linear. (?m) lets ^ and $
    match at each line; (?s) lets . match a line break. The words before and after a removed part are never joined."""
    whitespace: Whitespace = Whitespace.KEEP
    """What happens to white space. Trim: every line break becomes one newline, and white space is removed from the ends
    of the lines and of the text. Collapse: in addition, several spaces within a line become one space, and several
    empty lines become one. Collapse destroys the indentation of code. Keep: the text is not changed."""
    mask: Annotated[list[Masked], Field(max_length=3), SET] = Field(default=[])
    """Personal data to replace by a mark. Email becomes <EMAIL_ADDRESS>. Card becomes <CREDIT_CARD>, for numbers with
    the length and prefix of a card network and a correct Luhn check digit. Phone becomes <PHONE_NUMBER>, for numbers
    with a country code or in the style of one of phoneRegions. Masking is not complete: for example, names and
    numbers written as words are not masked."""
    phone_regions: Annotated[list[Region], Field(max_length=16), SET] = Field(default=[])
    """Countries whose phone numbers are also masked if they have no country code, as ISO 3166-1 codes, for example [DE,
    US]. Digits without separators are masked only after a word such as phone or tel, because order numbers look the
    same."""


class EmbeddingModel(ApiModel):
    """A sentence embedding model."""

    uri: PrefixUri
    """Folder of the sentence embedding model, as s3://BUCKET/PREFIX or pvc://CLAIM/PATH. It contains config.json,
    the tokenizer and the weights as .safetensors of an encoder such as all-MiniLM-L6-v2. The embedding of a text is
    the mean over its tokens, or its first token if 1_Pooling/config.json says so."""


KEEP_LOOKS_FOR_NOTHING = (
    "near Keep does not look for near copies: remove embeddingModel and threshold, or set near to Group or Drop"
)


class Deduplicate(ApiModel):
    """What happens to near-duplicates: rows whose texts have at least the threshold as Jaccard similarity. The
    similarity is computed over all sequences of five words, or of five characters in texts of 8 to 19 words. Case,
    punctuation, white space and text that most rows share are ignored. A group of near-duplicates has at most 2% of
    the rows, or 10 rows if that is more."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.near != 'Keep' || !(has(self.embeddingModel) || has(self.threshold))",
                KEEP_LOOKS_FOR_NOTHING,
            )
        )
    )

    near: Near = Near.GROUP
    """What happens to near-duplicates. Group: every row is kept, and rows with near-duplicate prompts go to the same
    side of the split, so that no test row was seen in training. Drop: in addition, only the first of the rows with
    near-duplicate prompts and answers is kept, and training rows with a near-duplicate prompt in dataset.test or
    dataset.validation are dropped. Keep: near-duplicates are not searched for; rows with exactly the same prompt
    still go to the same side."""
    embedding_model: EmbeddingModel | None = None
    """Compares rows by meaning instead of by words: near-duplicates are rows whose embeddings have at least the
    threshold as cosine similarity. The comparison is much slower and accepts at most 200,000 rows. Default: rows are
    compared by words."""
    threshold: Annotated[float, Field(ge=0.5, le=1)] | None = None
    """Similarity at or above which rows are near-duplicates. Default: 0.8, or 0.9 with embeddingModel."""

    @property
    def contradiction(self) -> str | None:
        """What the API server has against these fields together; None where it takes them."""
        asks = self.embedding_model is not None or self.threshold is not None
        return KEEP_LOOKS_FOR_NOTHING if self.near is Near.KEEP and asks else None

    @property
    def sentence_model(self) -> str | None:
        """URI of the sentence embedding model; None if near-duplicates are compared by words or not searched for."""
        return None if self.near is Near.KEEP or self.embedding_model is None else self.embedding_model.uri
