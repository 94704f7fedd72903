"""The mathematics of low-rank adapters as functions of tensors and numbers. No models in here."""
