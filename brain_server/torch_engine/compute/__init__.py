"""What the torch thread computes. Knows nothing of asyncio, stores or students."""
