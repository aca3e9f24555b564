"""The contract between tenants, the operator and the trainer: `finetune.dev/v1alpha1`.

Pure: pydantic models, constants and small functions over them. No I/O, no framework.

- `spec`: the fields that users write. `kubectl explain` shows their docstrings.
- `status`: the fields that the operator and the pods write.
- `model`, `uris`, `globs`, `quantity`: types of fields. `conflicts`: checks that a job's locations exclude each other.
- `reasons`: all failure reasons, with exit code and remedy.
- `bundle`: the input of a trainer pod, which the operator writes.
- `names`: labels, names and paths that the operator and the trainer share.
- `schema`: converts the models into CustomResourceDefinitions (`make generate`).
"""
