"""What users write: a FineTuneJob's spec, part by part, and a FineTuneProfile's.

May import: the modules of finetune_api itself."""
