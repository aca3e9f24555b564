"""The API server: `observe` reads the world of one job, and `apply` carries out a plan. No other package calls it.

May import: decisions, observed."""
