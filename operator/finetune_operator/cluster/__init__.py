"""The API server: `observe` reads one job's world, `apply` carries out a plan. Nothing else talks to the cluster.

May import: decisions, observed."""
