"""The command line for tenants and pipelines. `validate` checks manifests without a cluster."""
