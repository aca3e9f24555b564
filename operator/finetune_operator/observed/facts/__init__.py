"""What one object shows by itself, from its JSON: a pod, a PersistentVolumeClaim, and a job that has ended.

Pure, as everything observed. May import: finetune_api."""
