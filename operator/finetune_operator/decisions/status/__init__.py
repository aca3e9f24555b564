"""What the status of a job says: state, stage and conditions, and the sentences in them.

Pure, as all decisions. May import: `attempts`, `objects`, `gpu_choice`, observed."""
