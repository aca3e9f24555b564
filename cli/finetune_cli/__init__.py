"""The command line for tenants and pipelines. `validate` reads manifests without a cluster."""
