"""The templates of what people read."""

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from finetune_trainer.evaluation.verdict import percent
from finetune_trainer.training.training_progress import duration

LONGEST_TEXT = 2000
"""Characters of a text that are shown; samples.jsonl has all of it."""


def template(name: str) -> Template:
    """One of the templates in the folder beside this module. What goes into HTML is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        # Rows are strangers' text: nothing of them may become markup.
        autoescape=lambda template: template is not None and template.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "duration": duration, "fenced": fenced, "shorten": shorten}
    return environment.get_template(name)


def shorten(text: str) -> str:
    """At most LONGEST_TEXT characters of it."""
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT].rstrip() + " …"


def fenced(text: str, language: str = "") -> str:
    """A Markdown code block that nothing in `text` can end."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
