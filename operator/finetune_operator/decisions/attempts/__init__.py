"""The attempts of a job: their records, whether and when there is another one, what they use, and what stops them.

Pure, as all decisions. May import: `gpu_choice`, observed."""
