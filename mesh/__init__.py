"""What both servers stand on; knows neither."""

import os

# Nothing here calls gRPC in a fork without an exec; with the support on, its core logs every fork beside its threads,
# such as those that start Ray, in a form of its own. Read once, when gRPC is loaded.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
