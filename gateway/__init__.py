"""Envoy in front of both servers: REST and SSE for browsers, gRPC for everyone else."""
