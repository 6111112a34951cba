"""Names the ports that are taken before the stack starts, each with the variable that moves it.

`python -m gateway.preflight VARIABLE[+OFFSET] …` ends with status 1 if a port on loopback is taken or out of range.
"""

import os
import socket
import sys


def fault_of(word: str) -> str | None:
    """Returns what is wrong with the port that a word such as `S3_PORT+1` names; None if it is free."""
    name, _, offset = word.partition("+")
    value = os.environ.get(name, "")
    if not value.isdecimal() or not 0 < int(value) + int(offset or 0) <= 65535:
        return f"{name}: {value or 'not set'}, which is not a port number"
    port = int(value) + int(offset or 0)
    with socket.socket() as probe:
        # As the servers do: a port that a stopped stack has just left is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            where = f"{name} + {offset}" if offset else name
            return f"port {port} ({where}) is taken: stop what listens there, or set {name} to another"
    return None


def main() -> None:
    """Checks every port on the command line, and names all that are not free."""
    faults = [fault for word in sys.argv[1:] if (fault := fault_of(word))]
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
