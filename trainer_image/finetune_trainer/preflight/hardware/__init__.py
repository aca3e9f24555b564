"""What a job needs of its GPUs and pods in memory, disk space and time, and the end of a job that does not fit them.

May import: preflight.resolve, and what preflight may import."""
