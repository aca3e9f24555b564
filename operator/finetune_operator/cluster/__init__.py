"""The API server: `observe` assembles the world of one job, `apply` carries out a plan, and `repair` compares the store
with the cluster. No other package calls the API server, except kopf's watches.

May import: decisions, store, observed."""
