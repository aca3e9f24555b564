"""Why a run waits or has failed, in one sentence with a remedy: from its pod, its Workload, or its own words.

Pure, as everything observed. May import: `facts`, `standing`, finetune_api."""
