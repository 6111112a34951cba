"""The vLLM engine: a vLLM server beside the brain, called over HTTP."""
