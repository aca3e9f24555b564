"""Converts records to rows (columns, messages, values), and checks, cleans and masks the rows.

May import: pod, sources."""
