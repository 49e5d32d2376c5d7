"""Access to the servers: addresses, names, ports and passwords."""

import re
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

from flows.command.configuration import ConfigurationError
from flows.service.server import LOOPBACK

_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


def check_access(host: str, public_hosts: list[str], login: str | None) -> None:
    """Refuse to listen beyond this machine without a password or without a public name.

    Args:
        login: `user:password` required by the UI, the API and the reports.

    Raises:
        ConfigurationError: password or name are missing or invalid, or the host is not an address.
    """
    if not addresses(host):
        raise ConfigurationError(f"--host: {host!r} is not an address; give one of this machine, such as 127.0.0.1")
    for name in public_hosts:
        if not _HOST_NAME.fullmatch(name):
            right = "a host name such as gpu7.example.org, without scheme and port"
            raise ConfigurationError(f"--public-host: {name!r} is not a host name; give {right}")
    if login is not None and not re.fullmatch(r"[^:]+:.+", login):  # never shown: it is a password
        raise ConfigurationError("PREFECT_SERVER_API_AUTH_STRING: its value is not of the form user:password")
    if login is None and (public_hosts or not is_loopback(host)):
        option = f"--host: {host!r}" if not is_loopback(host) else f"--public-host: {public_hosts[0]!r}"
        raise ConfigurationError(
            f"{option} accepts other machines, and anyone who reaches Prefect's API can run commands here; "
            "set a password: PREFECT_SERVER_API_AUTH_STRING=user:password"
        )
    if is_wildcard(host) and not public_hosts:
        raise ConfigurationError(
            f"--host: {host!r} means all addresses of this machine; name the one that users open with --public-host"
        )


def addresses(host: str) -> list[IPv4Address | IPv6Address]:
    """The addresses on which a server for this host listens; none if it is not a host."""
    if not host:  # servers would take it for all addresses
        return []
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        return []
    return [_unmapped(ip_address(str(place[0]))) for *_, place in found]


def _unmapped(found: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    return found if isinstance(found, IPv4Address) else found.ipv4_mapped or found


def is_loopback(host: str) -> bool:
    """True for a host that only this machine can reach."""
    found = addresses(host)
    return bool(found) and all(place.is_loopback for place in found)


def is_wildcard(host: str) -> bool:
    """True for a host that means all addresses of this machine."""
    return any(place.is_unspecified for place in addresses(host))


def address(host: str) -> str:
    """Host part of URLs under which programs of this machine reach a server that listens on `host`."""
    if is_wildcard(host):
        return "[::1]" if ":" in host else LOOPBACK[0]
    return f"[{host}]" if ":" in host else host


def known_as(host: str, public_hosts: list[str]) -> list[str]:
    """Names under which servers answer; the one used in links comes first."""
    return list(dict.fromkeys([*public_hosts, address(host), *LOOPBACK]))


def check_port(option: str, host: str, port: int) -> None:
    """Refuse a port that is in use.

    Raises:
        ConfigurationError: it is in use, or the address is not one of this machine.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            hint = f"choose another with {option}"
            if option == "--port":
                hint += f", or set PREFECT_API_URL=http://{address(host)}:{port}/api to use a Prefect server there"
            raise ConfigurationError(f"{option}: {host}:{port} cannot be used ({error.strerror}); {hint}") from error
