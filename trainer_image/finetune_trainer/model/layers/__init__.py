"""What the layers of a model compute in place of the code of PyTorch, Transformers and PEFT.

Attention over packed rows, experts with adapters, dropout by document, and the optional speedups of a GPU.

May import: model.batches, and what model may import."""
