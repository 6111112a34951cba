"""The brain's gRPC edge: parses requests, calls the engine, converts replies."""
