"""The FineTuneJobs of examples/."""

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "examples"
OF_KUEUE = FOLDER / "kueue"
"""Has no FineTuneJob. tests/e2e/queues applies it."""
JOBS = {str(path.relative_to(FOLDER)): path for path in sorted(FOLDER.rglob("*.yaml")) if OF_KUEUE not in path.parents}
"""Paths by the name below FOLDER."""
