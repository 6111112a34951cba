"""The vLLM engine: calls a vLLM server beside the brain over HTTP."""
