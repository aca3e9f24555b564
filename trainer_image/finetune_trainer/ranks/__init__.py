"""Several processes that train one job, each with its own GPU: how they start, what they tell each other, and how they
end."""
