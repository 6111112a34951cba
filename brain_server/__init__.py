"""The Main Brain's server: answers students through their own adapters."""
