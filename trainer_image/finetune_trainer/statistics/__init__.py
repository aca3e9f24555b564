"""Statistics of the models' results on held-out rows: confidence intervals, comparison, evidence. Pure, without torch.

May import: everything below it, down to pod."""
