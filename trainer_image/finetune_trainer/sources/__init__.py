"""Data files of every format, read record by record, and what the check of the data has found so far.

May import: pod."""
