"""What a FineTuneJob's status holds, part by part, and who writes which field.

May import: spec, and the modules of finetune_api itself."""
