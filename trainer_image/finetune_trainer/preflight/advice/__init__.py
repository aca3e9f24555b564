"""The advice on a job before it uses a GPU, and the numbers that it depends on. It never stops a job.

May import: preflight.data, preflight.hardware, preflight.resolve, and what preflight may import."""
