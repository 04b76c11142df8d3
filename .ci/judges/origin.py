"""An origin of HTTP/1.1 that answers everything and says what it was asked: origin.py LISTEN."""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


# More than a proxy and two systems hold for one connection.
LARGE = b"a" * 2_000_000


class Origin(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        if self.headers.get("transfer-encoding"):
            length = 0
            while size := int(self.rfile.readline().split(b";")[0], 16):
                length += len(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
        else:
            length = len(self.rfile.read(int(self.headers.get("content-length", 0))))
        names = ",".join(sorted(name.lower() for name in self.headers.keys()))
        said = f"{self.command} {self.path} host={self.headers.get('host')} content={length} fields={names}\n".encode()
        if self.path.startswith("/large"):
            said += LARGE
        self.send_response(200)
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(said)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_PATCH = answer

    def log_message(self, *arguments):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def handle_error(self, request, address):
        pass


Server(("127.0.0.1", int(sys.argv[1])), Origin).serve_forever()
