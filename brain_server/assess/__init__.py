"""Assessment: what an answer is worth, and what to tell the student."""
