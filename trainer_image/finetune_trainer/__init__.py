"""What runs in a job's pods: `python -m finetune_trainer {preflight,train} BUNDLE`, read from top to bottom.

Preflight (CPU only, never imports torch), `preflight`:
    `base_model` what the model's folder holds, `previous_adapter` -> `gather`: `data_files` and their `records`
    (`json_rows`, `tables`) -> `rows`, by their `row_columns` and `row_format` -> `clean`, with `masking` ->
    `deduplicate`, with `near_duplicates` or `embeddings`, and `clusters` -> `suspicions` -> `render` and `tokenization`
    -> `row_store`, on disk, and `row_notes` -> `split` -> `resolve` -> `facts`, with `leaks`, and `advice` ->
    `prepared`, which leaves the token ids for the attempts.

Train (on the GPU), `train`:
    `prepared` -> `model`, its `attention`, and by `isolation` which rows it takes at once -> `assessment` of the base,
    `quantized` and not -> `trainable`, what of it the method trains -> `memory_probe`, how much at a time ->
    `training_loop`, with the rows of `mixing` and `batches`, their `loss`, through `fused_lora` and `document_dropout`,
    the `optimizer` and the rate of `schedule`, followed by `validation` -> `assessment` of the tuned model ->
    `serving`, how it is to be asked -> `merge`, where wanted -> `publish`, with the pages of `report`
    (`report_results`, `report_tables`, `report_samples` with their `differences`, `chart`) and `model_card`, from all
    `results` through `pages`, whose templates are in the folder of that name.

The evaluation, `assessment` from top to bottom:
    `answer_kind` and `metric_choice` what is measured, decided in preflight -> `evaluate`, with `generation` and the
    prompts of `few_shot` -> `measured` -> `metrics` of `text_metrics`, `json_fields` and `labels` -> `estimates` with
    their `intervals` -> `comparison` in `metric_rows`, and of the rows that did not leak the `evidence`, also against
    `chance` -> `gates` -> `verdict` -> `evaluation_status`.

Both:
    `__main__`: the command, and how each end becomes an exit code and a termination message.
    `failure`, `termination`: the ways to end. `storage`: S3 and local files. `scratch`: where a
    pod may write. `status_writer`: the job's status. `progress`: the line a person waiting at the pod's log sees.
    `ownership`: whose the results at the output are.
"""
