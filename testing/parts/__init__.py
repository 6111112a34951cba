"""The real parts as processes on free loopback ports."""
