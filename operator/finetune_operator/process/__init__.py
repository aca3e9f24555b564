"""The running process: queue and workers, kopf's watches, supervision, and probes for the kubelet.

May import: cluster, decisions, store, observed. Only `kopf_run` imports kopf."""
