"""Alerts for adults: recorded, streamed, and delivered to a webhook."""
