"""Publishes the results of a run to output.uri: weights, manifest, report, model card and prompt format.

May import: everything below it."""
