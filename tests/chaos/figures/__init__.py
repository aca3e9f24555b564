"""What the tries show: `judge` one try, `record` all tries in a file, `page` docs/reliability.md. Runs nothing."""
