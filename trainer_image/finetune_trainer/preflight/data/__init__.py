"""The rows of a job: they are gathered or taken from the cache, dropped if they are too long, split, and compared.

May import: preflight.resolve, and what preflight may import."""
