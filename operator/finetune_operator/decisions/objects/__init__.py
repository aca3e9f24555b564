"""The objects of a job in the cluster: its Jobs with their pods, its bundle, and what its pods mount and may read.

Pure, as all decisions. May import: `plan`, observed."""
