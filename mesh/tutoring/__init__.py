"""How a student is taught: profile, instructions and form. Knows nothing of language models."""
