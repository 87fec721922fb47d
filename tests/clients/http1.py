"""HTTP/1.1 byte by byte: for requests that no proper client sends, and for clients that leave in the middle."""
import asyncio
import json
import socket

# A server that says nothing for so long is stuck.
SILENCE_S = 120


def request(method, path, body=b"", headers=(), content_type="application/json"):
    """A request as bytes; its connection ends with it."""
    lines = [f"{method} {path} HTTP/1.1", "Host: server", "Connection: close"]
    if content_type is not None:
        lines.append(f"Content-Type: {content_type}")
    lines += [f"{name}: {value}" for name, value in headers]
    names = {name.lower() for name, _ in headers}
    if not names & {"content-length", "transfer-encoding"}:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def chunked(body, size):
    """A body in chunks of `size`, without the last one, which is empty."""
    pieces = [body[i:i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


LAST_CHUNK = b"0\r\n\r\n"


def post(path, body):
    """A request with a JSON body as bytes."""
    return request("POST", path, json.dumps(body).encode())


class Response:
    """The head of a response, and its body as it comes."""

    def __init__(self, reader, status, headers):
        self.reader, self.status, self.headers = reader, status, headers

    async def pieces(self):
        """The body's pieces."""
        if "chunked" in self.headers.get("transfer-encoding", ""):
            while size := int(await quick(self.reader.readline()), 16):
                yield (await quick(self.reader.readexactly(size + 2)))[:-2]
        elif length := int(self.headers.get("content-length", 0)):
            yield await quick(self.reader.readexactly(length))

    async def body(self):
        """The whole body."""
        return b"".join([piece async for piece in self.pieces()])


async def quick(work):
    """Waits, but not for ever."""
    return await asyncio.wait_for(work, SILENCE_S)


async def respond(reader):
    """Reads a response's head; None if the connection ends without one."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = await quick(reader.readline())
        if not line:
            assert not head, f"the connection ended within a response's head: {head!r}"
            return None
        head += line
    first, *lines = head.decode("latin-1").strip().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return Response(reader, int(first.split(" ")[1]), headers)


async def exchange(server, raw, half_close=False):
    """Sends bytes, reads until the connection ends, and gives the response's status, headers and body; None if there is none.

    Whatever was answered before the request was complete is read, too. `half_close`: says at the end that nothing follows,
    and still listens.
    """
    loop, connection = asyncio.get_running_loop(), socket.socket()
    connection.setblocking(False)
    with connection:
        await loop.sock_connect(connection, (server.host, server.port))
        try:
            await quick(loop.sock_sendall(connection, raw))
            if half_close:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        answer = b""
        try:
            while piece := await quick(loop.sock_recv(connection, 1 << 16)):
                answer += piece
        except ConnectionError:
            pass
    reader = asyncio.StreamReader(limit=1 << 24)
    reader.feed_data(answer)
    reader.feed_eof()
    response = await respond(reader)
    return response and (response.status, response.headers, await response.body())


async def stream_text(server, body):
    """Asks for a chat as a stream and gives its text."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        writer.write(post("/v1/chat/completions", {**body, "stream": True}))
        response = await respond(reader)
        assert response and response.status == 200, response and (response.status, await response.body())
        events = (await response.body()).decode().split("\n\n")
        datas = [event.removeprefix("data: ") for event in events if event.startswith("data: ")]
        assert datas.pop() == "[DONE]", "a stream ends with [DONE]"
        return "".join(choice["delta"].get("content", "") for data in datas for choice in json.loads(data)["choices"])
    finally:
        writer.close()
