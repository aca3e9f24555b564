"""The models on held-out rows: `recipe` scores them, compares them with intervals, checks gates, and gives the verdict.

May import: training, model and everything below them."""
