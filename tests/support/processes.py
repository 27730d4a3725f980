"""Which processes a program has, and the ports on which they listen."""

from __future__ import annotations

import psutil


def note(
    root: psutil.Process, seen: dict[int, psutil.Process], ports: set[int]
) -> None:
    """Add a process and its descendants to `seen`, and where they listen to `ports`."""
    for one in (root, *root.children(recursive=True)):
        seen[one.pid] = one
        try:
            found = one.net_connections("inet")
        except psutil.Error:
            continue
        ports |= {c.laddr.port for c in found if c.status == psutil.CONN_LISTEN}


def listening() -> set[int]:
    """Return the ports on which anything on this machine listens."""
    found = psutil.net_connections("inet")
    return {one.laddr.port for one in found if one.status == psutil.CONN_LISTEN}
