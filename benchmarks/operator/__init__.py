"""Measures the operator as a process: `python -m benchmarks.operator`.

The control plane is real: etcd, API server and controller-manager of the local cluster. There is no node. `node` plays
the kubelet and the trainer. The audit log of the API server counts the requests of the operator (`audit`).

Each case runs on a new control plane (`plane`) and yields figures (`figures`). `throughput`, `latency`, `life`,
`residents` and `storage` have the cases, and `__main__` has their list. `copies` fills the cluster with copies of a job
that the operator itself has brought to a state.

`fleet` measures nothing. It simulates several clusters with figures that were measured."""
