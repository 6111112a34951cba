"""Chooses the adapter that answers a request, and keeps adapters in memory."""
