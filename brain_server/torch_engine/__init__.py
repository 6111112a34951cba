"""The torch engine: a running batch on one base model in this process, driven by the event loop."""
