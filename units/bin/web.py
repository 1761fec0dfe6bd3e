"""A small web server that says READY only when it really listens, and stops gently on SIGTERM."""

import http.server
import os
import signal
import sys
import threading

from notify import notify


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f"hello from pid {os.getpid()}, life {os.environ.get('INVOCATION_ID', '?')[:8]}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


port = int(sys.argv[1])
server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)


def stop(signum: int, frame: object) -> None:
    notify("STOPPING=1\nSTATUS=finishing the last requests")
    threading.Thread(target=server.shutdown).start()


signal.signal(signal.SIGTERM, stop)
notify(f"READY=1\nSTATUS=answering on 127.0.0.1:{server.server_port}")
print(f"listening on 127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
print("stopped", flush=True)
