"""The frozen base model's arithmetic for training and batch decoding."""
