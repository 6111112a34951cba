"""Which adapter answers a request, and where its bytes are."""
