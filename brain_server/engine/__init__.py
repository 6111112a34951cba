"""What the brain asks of an engine, and the rules that every engine follows. No torch, no vLLM."""
