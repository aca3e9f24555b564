"""Reads data files of every format record by record, and collects the errors and warnings of the check.

May import: pod."""
