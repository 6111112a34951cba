"""The interface of an engine, and the rules that all engines share. Imports neither torch nor vLLM."""
