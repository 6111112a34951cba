"""The torch engine: a running batch on one base model, driven by the event loop."""
