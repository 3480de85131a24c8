"""Send heartbeats to rank 0: JSON lines over TCP, one connection per rank, answered with the verdict."""

import json
import secrets
import socket
import socketserver
import threading
from dataclasses import asdict

from lsdali.faults.table import Beat, ProcessTable, Verdict

Address = tuple[str, int, str]  # host, port, and the word that opens the connection
LOCAL = "127.0.0.1"


class Server:
    """Keeps the table up to date with what other ranks send, until it is closed.

    `host` is the address under which other nodes reach this one; None if there are no others. It listens there alone
    if the address is this node's own.
    """

    def __init__(self, table: ProcessTable, host: str | None) -> None:
        word = secrets.token_hex(16)

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                if self.rfile.readline(64).strip() != word.encode():
                    return
                rank = -1
                try:
                    while line := self.rfile.readline(4096):
                        beat = Beat(**json.loads(line))
                        rank = beat.rank
                        self.wfile.write(json.dumps(asdict(table.hear(beat))).encode() + b"\n")
                except OSError:
                    pass
                table.lose(rank)

        try:
            self._server = socketserver.ThreadingTCPServer((host or LOCAL, 0), Handler)
        except OSError:  # an address that only others know, as behind a container's bridge
            self._server = socketserver.ThreadingTCPServer(("", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.address: Address = (host or LOCAL, self._server.server_address[1], word)
        threading.Thread(target=self._server.serve_forever, name="beats", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Line:
    """A rank's connection to the table. Raises OSError if it cannot be made, is cut, or stays silent too long."""

    def __init__(self, address: Address, seconds: float) -> None:
        self._socket = socket.create_connection(address[:2], timeout=seconds)
        self._file = self._socket.makefile("rwb")
        self._file.write(address[2].encode() + b"\n")

    def hear(self, beat: Beat) -> Verdict:
        """Send a beat; return the verdict."""
        self._file.write(json.dumps(asdict(beat)).encode() + b"\n")
        self._file.flush()
        answer = self._file.readline()
        if not answer:
            raise ConnectionResetError("rank 0 has ended")
        fields = json.loads(answer)
        return Verdict(**{**fields, "stacks": tuple(fields["stacks"])})

    def close(self) -> None:
        self._file.close()
        self._socket.close()
