"""What a run leaves at output.uri: weights, manifest, report, model card, and how to serve it.

May import: everything below it."""
