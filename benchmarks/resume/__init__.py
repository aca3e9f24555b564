"""Kills real processes of the trainer at random moments, lets later attempts resume, and compares the results.

    python -m benchmarks.resume [--kills 300]        # make bench-resume

`serve` starts trainer processes, `histories` kills and resumes them, `job` makes the jobs."""
