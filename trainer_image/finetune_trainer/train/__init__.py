"""The training pod: from the prepared data and the base model to published weights and a verdict. Read `recipe` first.

- `recipe`: all steps in order.
- `work`: what every step needs: the job, its prepared data, the model's folder, the status.
- `tuning`: the base model becomes the tuned model, and its weights are staged.
- `telling`: what is written to the log and to the status.

May import everything but `__main__` and `preflight.recipe`.
"""
