"""The contract between tenants, the operator and the trainer: `finetune.dev/v1alpha1`.

Pure: pydantic models, constants and small functions over them. No I/O, no framework. See each module:

- `job`, `profile`, `status`: the two kinds, field by field. What is written there is what `kubectl explain` shows. Of
  the job's spec, `method`, `dataset` with `preparation`, `training` and `evaluation` have a module each; of its status
  `preflight_status` and `evaluation_status`.
- `model`, `status_fields`, `uris`, `quantity`: what fields are made of.
- `reasons`: every way a job can fail, with the exit code and the sentence for the tenant.
- `bundle`: what the operator hands to a trainer pod.
- `conflicts`: whether the places a job writes and reads get in each other's way, with wildcards as `globs` has them.
- `model_shape`: what of a base model decides memory and time, from its config.json and its weights' headers.
- `sizing`, `run_time`: how much memory a run takes, and how long.
- `names`: labels, names and paths both sides have to agree on.
- `schema`: turns the models into CustomResourceDefinitions and the reference page (`make generate`).
"""
