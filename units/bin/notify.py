"""Say something to the supervisor: the sd_notify protocol in ten lines, for the examples."""

import os
import socket


def notify(text: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(text.encode(), address.replace("@", "\0", 1) if address.startswith("@") else address)
