"""What models did on held-out rows, and what follows from it: intervals, comparison, evidence. Pure, never torch.

May import: everything below it, down to pod."""
