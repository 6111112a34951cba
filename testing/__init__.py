"""What tests and benchmarks share: real parts as processes, small models, scripted servers, load and chaos."""
