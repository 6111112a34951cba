"""The curriculum of the Main Brain: lessons written by the project, and the training of its roles.

The lessons know nothing of the servers; `train` uses the cloning server's passes. No server imports it; what it makes
is data.
"""
