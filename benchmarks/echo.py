"""A bare gRPC server that answers vecstore's messages with the same reply each time: what gRPC itself costs.

The reply is a message of the size of a real one, written anew for each call; the request is read. Nothing else is done.

    python benchmarks/echo.py REPLY_FILE

prints the port that it listens on.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from vecstore.wire.v1 import store_pb2 as pb


def main() -> None:
    """Serve until killed."""
    reply = pb.SearchReply.FromString(Path(sys.argv[1]).read_bytes())

    def search(request: pb.SearchRequest, _context: grpc.ServicerContext) -> pb.SearchReply:
        assert request.k
        return reply

    server = grpc.server(ThreadPoolExecutor(4 * len(os.sched_getaffinity(0))))
    handler = grpc.unary_unary_rpc_method_handler(
        search,
        request_deserializer=pb.SearchRequest.FromString,
        response_serializer=pb.SearchReply.SerializeToString,
    )
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("echo", {"Search": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
