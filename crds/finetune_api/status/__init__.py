"""The parts of a FineTuneJob's status, and which component writes which field.

May import: spec, and the modules of finetune_api itself."""
