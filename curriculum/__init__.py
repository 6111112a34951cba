"""The curriculum of the Main Brain: lessons written by the project, and the training of its roles.

Knows nothing of the servers. No server imports it; what it makes is data.
"""
