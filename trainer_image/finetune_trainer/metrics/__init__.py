"""What answers are judged by: the kind of answers that rows hold, the metrics that suit it, and their values.

May import: pod, sources, rows, tokens. Never torch."""
