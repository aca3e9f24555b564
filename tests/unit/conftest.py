"""Why the unit level takes less than a minute although it imports torch and all of Transformers."""

import gc

gc.disable()


def pytest_collection_finish() -> None:
    """What was imported stays: no later collection of garbage need look at it, which saves a tenth of the time."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Libraries in C++ look at the end whether anything was left over, and say so."""
    gc.unfreeze()
