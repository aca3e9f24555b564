"""Evaluates the models on held-out rows: `recipe` scores and compares them, checks the gates, and gives the verdict.

May import: training, model and everything below them."""
