"""report.html and the model card, from a run's results."""

from finetune_trainer.results import Results


def report_page(results: Results) -> str:
    return "<html></html>"


def model_card(results: Results) -> str:
    return "# card"
