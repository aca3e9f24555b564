"""The contract between tenants, the operator and the trainer: `finetune.dev/v1alpha1`.

Pure: pydantic models, constants and small functions over them. No I/O, no framework.

- `spec`: what users write, field by field. Its docstrings are what `kubectl explain` shows.
- `status`: what the operator and the pods write.
- `model`, `uris`, `globs`, `quantity`: what fields are made of. `conflicts`: which places of a job exclude each other.
- `reasons`: every way a job can fail, with the exit code and the remedy.
- `bundle`: what the operator hands to a trainer pod.
- `names`: labels, names and paths that both sides have to agree on.
- `schema`: turns the models into CustomResourceDefinitions and the reference page (`make generate`).
"""
