"""What the torch thread computes. Knows no asyncio, no store and no students."""
