"""Records read as rows: columns, turns, values; rows checked, cleaned and masked.

May import: pod, sources."""
