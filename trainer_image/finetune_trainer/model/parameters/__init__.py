"""The weights of a model: how they are loaded, which ones are trained, how they are sharded, and how they are written.

May import: model.loss, model.isolation, model.layers and what these may import."""
