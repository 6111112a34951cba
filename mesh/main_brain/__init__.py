"""The Main Brain: a base model with its tutor merged into it, the roles beside it, and how it is loaded."""
