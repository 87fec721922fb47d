"""SIGTERM lets running answers end, up to a time limit, and turns new requests away with 503; a second signal ends at once.

shutdown.py
"""
import asyncio
import json
import signal
import sys
import time

import pictures
from checks import equal, report
from http1 import post, quick, respond
from served import COUNT, COUNTED, PATIENCE_S, SHAPES, Served

LONG_S, LOT = 600, 8000
ASKED = {"messages": [{"role": "user", "content": COUNT}]}


class Stream:
    """An answer on its way."""

    @classmethod
    async def of(cls, server, **more):
        """Asks, and waits until the answer has begun."""
        self = cls()
        self.reader, self.writer = await asyncio.open_connection(server.host, server.port)
        self.writer.write(post("/v1/chat/completions", {**ASKED, "stream": True, **more}))
        response = await respond(self.reader)
        equal(response.status, 200)
        self.pieces = response.pieces()
        self.events = (await anext(self.pieces)).decode()
        return self

    async def to_end(self):
        """Reads on. True if the stream came to its end."""
        try:
            async for piece in self.pieces:
                self.events += piece.decode()
        except (ConnectionError, asyncio.IncompleteReadError, ValueError):
            return False
        finally:
            self.writer.close()
        return self.events.endswith("data: [DONE]\n\n")

    def text(self):
        datas = [event.removeprefix("data: ") for event in self.events.split("\n\n")]
        chunks = [json.loads(data) for data in datas if data.startswith("{")]
        return "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])


async def is_draining(server):
    """Waits until those who come anew are told that the server is shutting down."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(post("/v1/chat/completions", {**ASKED, "max_tokens": 1}))
        response = await respond(reader)
        # None: it was let in at the very moment of the signal, and closed before its request was read.
        if response and response.status == 503:
            equal(json.loads(await response.body())["error"]["code"], "shutting_down")
            equal("retry-after" in response.headers, True)
            equal(await reader.read(), b"", "bytes behind the answer")
            writer.close()
            return True
        writer.close()
        await asyncio.sleep(0.01)
    return False


async def exited(server):
    return await asyncio.to_thread(server.process.wait, PATIENCE_S)


async def answers_end():
    """Streams, more than run side by side, end as if nothing had happened; who comes later is turned away."""
    with Served("--shutdown-timeout", str(LONG_S)) as server:
        # A request of which only the head's beginning has come is no running one.
        reader, late = await asyncio.open_connection(server.host, server.port)
        raw = post("/v1/chat/completions", ASKED)
        late.write(raw[:40])
        png = SHAPES.read_bytes()
        asked = [{}] * 20 + [{"messages": pictures.question("Describe the picture.", png)}]
        streams = [asyncio.create_task(Stream.of(server, **more)) for more in asked]
        held = await Stream.of(server, max_tokens=500, ignore_eos=True)
        streams = await asyncio.gather(*streams)
        server.process.send_signal(signal.SIGTERM)
        assert await is_draining(server), "the server still takes requests"
        late.write(raw[40:])
        response = await respond(reader)
        if response:
            equal((response.status, json.loads(await response.body())["error"]["code"]), (503, "shutting_down"))
        late.close()
        ended = await asyncio.gather(*(stream.to_end() for stream in [held, *streams]))
        equal(ended, [True] * len(ended), "streams that came to their end")
        equal([stream.text() for stream in streams[:20]], [COUNTED] * 20)
        equal(await exited(server), 0, "exit status")
        return f"a request that came too late got {'503' if response else 'its connection closed'}"


async def idle_connections_hold_nothing_up():
    with Served("--shutdown-timeout", str(LONG_S)) as server:
        connections = [await asyncio.open_connection(server.host, server.port) for _ in range(2)]
        reader, writer = connections[0]
        writer.write(b"GET /health HTTP/1.1\r\nHost: server\r\n\r\n")
        equal((await respond(reader)).status, 200)
        server.process.send_signal(signal.SIGINT)
        equal(await exited(server), 0, "exit status")
        for _, writer in connections:
            writer.close()


async def time_limit():
    """An answer that takes longer than the limit is cut off."""
    with Served("--shutdown-timeout", "1") as server:
        stream = await Stream.of(server, max_tokens=LOT, ignore_eos=True)
        server.process.send_signal(signal.SIGTERM)
        equal(await stream.to_end(), False, "the stream came to its end")
        equal(await exited(server), 0, "exit status")


async def second_signal():
    with Served("--shutdown-timeout", str(LONG_S)) as server:
        stream = await Stream.of(server, max_tokens=LOT, ignore_eos=True)
        server.process.send_signal(signal.SIGTERM)
        assert await is_draining(server)
        await quick(anext(stream.pieces))
        server.process.send_signal(signal.SIGTERM)
        equal(await stream.to_end(), False, "the stream came to its end")
        equal(await exited(server), 1, "exit status")


async def while_preparing():
    """A picture that is still being decoded when the signal comes is answered about."""
    with Served("--shutdown-timeout", str(LONG_S)) as server:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        messages = pictures.question("Describe the picture.", pictures.flat_png(5000, 4000))
        body = {"messages": messages, "max_tokens": 3, "mm_processor_kwargs": {"max_pixels": 4096}}
        writer.write(post("/v1/chat/completions", body))
        await writer.drain()
        while not server.busy().get("foveal_requests"):
            await asyncio.sleep(0)
        server.process.send_signal(signal.SIGTERM)
        response = await respond(reader)
        status = response and response.status
        assert status in (200, 503), status
        writer.close()
        equal(await exited(server), 0, "exit status")
        return f"status {status}"


if __name__ == "__main__":
    works = {
        "running answers end, new requests are turned away": answers_end,
        "idle connections hold nothing up, Ctrl-C": idle_connections_hold_nothing_up,
        "a request whose picture is being decoded": while_preparing,
        "the time limit": time_limit,
        "a second signal": second_signal,
    }
    passed = [report(f"shutdown: {name}", lambda work=work: asyncio.run(work())) for name, work in works.items()]
    sys.exit(0 if all(passed) else 1)
