"""Ports to listen on, and error messages that name the port."""

import errno
import socket


class PortTaken(OSError):
    """Another process listens on the address already; the message names it."""


def with_address(error: OSError, host: str, port: int) -> OSError:
    """Returns the error with the address in its message, as `PortTaken` if the port is taken."""
    address = address_of(host, port)
    if error.errno == errno.EADDRINUSE:
        return PortTaken(errno.EADDRINUSE, f"{address} is taken by another process")
    return OSError(error.errno, f"can't listen on {address}: {error.strerror}")


def why_not(host: str, port: int) -> OSError:
    """Returns why nothing can listen on an address; for libraries that raise no `OSError`."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        return with_address(error, host, port)
    return OSError(f"can't listen on {address_of(host, port)}")


def address_of(host: str, port: int) -> str:
    """Returns `host:port`, an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
