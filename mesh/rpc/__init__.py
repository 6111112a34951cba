"""Serving and calling over gRPC."""
