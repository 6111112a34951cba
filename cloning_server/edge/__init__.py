"""The cloning server's gRPC edge: parses requests, calls the domain, converts replies."""
