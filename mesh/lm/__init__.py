"""The language model, as training and serving share it."""
