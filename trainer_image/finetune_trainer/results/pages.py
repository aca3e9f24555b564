"""Loads the templates of the report and the model card."""

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from finetune_trainer.evaluation.verdict import percent
from finetune_trainer.training.training_progress import duration

LONGEST_TEXT = 2000
"""Largest number of characters of a text in the report. samples.jsonl has the whole text."""


def template(name: str) -> Template:
    """Returns a template of the folder `templates`. Values in HTML templates are escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        # Rows are untrusted text. They must never be read as HTML markup.
        autoescape=lambda template: template is not None and template.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "duration": duration, "fenced": fenced, "shorten": shorten}
    return environment.get_template(name)


def shorten(text: str) -> str:
    """Returns at most LONGEST_TEXT characters of `text`, with an ellipsis if it was cut."""
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT].rstrip() + " …"


def fenced(text: str, language: str = "") -> str:
    """Returns `text` as a Markdown code block. The fence is longer than any run of backticks in `text`."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
