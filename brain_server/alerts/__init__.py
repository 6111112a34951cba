"""Tells adults: alerts are recorded, streamed, and delivered to a webhook."""
