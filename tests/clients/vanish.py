"""Clients that connect, ask and vanish at random: no leak of blocks, tasks, memory or file handles, and no work for nobody.

vanish.py [--seconds 600] [--clients 64] [--seed 1]
"""
import argparse
import asyncio
import collections
import functools
import random
import re
import socket
import struct
import sys
import time

import pictures
from checks import report
from http1 import SILENCE_S, exchange, post, respond, stream_text
from served import COUNT, COUNTED, DESCRIBE, DESCRIBED, PATIENCE_S, SHAPES, Served

# The program itself, and pictures while they are decoded.
BESIDE_PLAN_MIB = 256
# After a quarter of so many seconds all memory has been in use; from then on it may only waver by so much.
LONG_S, MAX_GROWTH_MIB = 300, 64
# Seconds that a client waits at most for an answer that it wants to read.
MAX_WAIT_S = 8


@functools.cache
def large_picture(number):
    """One of a few pictures that take a while to make, too."""
    return pictures.flat_png(3000, 2000, (30 * number, 0, 0))


class Client:
    """One after another of many short visits."""

    def __init__(self, server, seed, counts):
        self.server, self.rng, self.counts = server, random.Random(seed), counts

    async def visit_until(self, end):
        while time.monotonic() < end:
            ask, leave = self.rng.choice(self.ASKS), self.rng.choice(self.LEAVES)
            reader, writer = await asyncio.open_connection(self.server.host, self.server.port)
            try:
                how = await leave(self, reader, writer, ask(self))
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                how = f"{leave.__name__}, which the server cut short: {type(error).__name__}"
            self.counts[how or leave.__name__] += 1
            self.go(writer)

    def go(self, writer):
        """Leaves: politely, or as a program does that is killed."""
        if self.rng.random() < 0.5:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        else:
            writer.close()

    # What is asked

    def chat(self, messages, **more):
        body = {"messages": messages, "max_tokens": self.rng.randrange(1, 100), "stream": self.rng.random() < 0.7, **more}
        if self.rng.random() < 0.3:
            body |= {"n": self.rng.randrange(2, 5), "temperature": 1.0, "logprobs": True, "top_logprobs": 3}
        if self.rng.random() < 0.5:
            body["ignore_eos"] = True
        return post("/v1/chat/completions", body)

    def ask_text(self):
        words = " ".join(self.rng.choice(["red", "blue", "star", "circle"]) for _ in range(self.rng.randrange(40)))
        return self.chat([{"role": "user", "content": f"{COUNT} {words}"}])

    def ask_prompts(self):
        prompt = lambda: [self.rng.randrange(500) for _ in range(self.rng.randrange(1, 40))]
        prompts = [prompt() for _ in range(self.rng.randrange(1, 5))]
        return post("/v1/completions", {"prompt": prompts, "max_tokens": 50, "stream": self.rng.random() < 0.5})

    def ask_picture(self):
        """Pictures that no request had before, some of them twice."""
        sides = [self.rng.randrange(32, 128) for _ in range(2)]
        picture = pictures.noise_png(*sides, seed=self.rng.random())
        return self.chat(pictures.question(DESCRIBE, *[picture] * self.rng.randrange(1, 4)))

    def ask_large_picture(self):
        """One that takes long to be decoded."""
        picture = large_picture(self.rng.randrange(8))
        return self.chat(pictures.question(DESCRIBE, picture), mm_processor_kwargs={"max_pixels": 1 << 16})

    ASKS = [ask_text] * 5 + [ask_prompts] * 2 + [ask_picture] * 4 + [ask_large_picture]

    # When the client leaves

    async def before_a_byte(self, _reader, _writer, _raw):
        await asyncio.sleep(self.rng.random() / 10)

    async def within_the_request(self, _reader, writer, raw):
        writer.write(raw[:self.rng.randrange(len(raw))])
        await writer.drain()
        await asyncio.sleep(self.rng.random() / 10)

    async def right_after_the_request(self, _reader, writer, raw):
        writer.write(raw)
        await writer.drain()

    async def with_bytes_behind_the_request(self, _reader, writer, raw):
        """Has sent more than its request when it goes."""
        writer.write(raw + b"\r\nGET / HTTP/1.1")
        await writer.drain()
        await asyncio.sleep(self.rng.random() / 2)

    async def while_it_waits(self, _reader, writer, raw):
        writer.write(raw)
        await writer.drain()
        await asyncio.sleep(self.rng.random() / 2)

    async def within_the_answer(self, reader, writer, raw):
        writer.write(raw)
        num_pieces = self.rng.randrange(1, 40)
        try:
            async with asyncio.timeout(self.rng.random() * MAX_WAIT_S):
                response = await respond(reader)
                if response is None:
                    return "no answer"
                async for _ in response.pieces():
                    num_pieces -= 1
                    if not num_pieces:
                        return None
        except TimeoutError:
            return "after a long wait"
        return "after the answer" if response.status == 200 else f"after status {response.status}"

    async def without_reading(self, _reader, writer, raw):
        """Asks, reads nothing for a while, and goes."""
        writer.transport.pause_reading()
        writer.write(raw)
        await asyncio.sleep(self.rng.random() * 3)

    LEAVES = [before_a_byte, within_the_request, right_after_the_request, right_after_the_request, while_it_waits,
              with_bytes_behind_the_request, within_the_answer, within_the_answer, within_the_answer, without_reading]


class Watch:
    """The server's memory over time, without what its cache of pictures gathers until that is full."""

    def __init__(self, server):
        self.server, self.samples = server, []

    def planned_mib(self, line):
        """A line of the memory plan that the server says at its start."""
        return float(re.search(rf"^ *{line} +([\d.]+)", self.server.said(), re.MULTILINE)[1])

    async def run(self):
        row_mib = self.planned_mib("encoder cache") / self.server.metrics()["foveal_encoder_rows"]
        while True:
            resident_mib = self.server.resident_bytes() / (1 << 20)
            metrics = await asyncio.to_thread(self.server.metrics)
            cached_mib = row_mib * metrics["foveal_encoder_rows_used"]
            self.samples.append((resident_mib, resident_mib - cached_mib))
            await asyncio.sleep(0.5)

    def check(self, seconds):
        """Memory stays within the plan, and stops growing once all of it has been in use."""
        bound = self.planned_mib("together") + self.planned_mib("page-locked, at most") + BESIDE_PLAN_MIB
        most = max(resident for resident, _ in self.samples)
        quarter = len(self.samples) // 4
        early, late = (max(rest for _, rest in part) for part in (self.samples[quarter:2 * quarter], self.samples[-quarter:]))
        said = f"{most:.0f} MiB at most; without cached pictures {early:.0f} in the second quarter, {late:.0f} in the last"
        assert most <= bound, f"{said}; planned {bound:.0f}"
        assert seconds < LONG_S or late <= early + MAX_GROWTH_MIB, f"memory grows: {said}"
        return said


async def good_answers(server):
    """Answers that are known, while nobody else asks."""
    png = SHAPES.read_bytes()
    counted = await stream_text(server, {"messages": [{"role": "user", "content": COUNT}]})
    described = await stream_text(server, {"messages": pictures.question(DESCRIBE, png)})
    # Several pictures are prepared side by side, on threads that start with the first such request.
    await stream_text(server, {"messages": pictures.question(DESCRIBE, png, png), "max_tokens": 1})
    assert counted == COUNTED and described.startswith(DESCRIBED), (counted, described)
    return described


async def visits(server, args, watch, counts):
    end = time.monotonic() + args.seconds
    watching = asyncio.create_task(watch.run())
    clients = [Client(server, args.seed * 1000 + i, counts) for i in range(args.clients)]
    try:
        await asyncio.gather(*(client.visit_until(end) for client in clients))
    finally:
        watching.cancel()


def back_to(server, what, now, before):
    """Waits until a count is back to what it was: idle threads and connections end after seconds."""
    end = time.monotonic() + SILENCE_S
    while now() > before:
        assert time.monotonic() < end, f"{now()} {what}, {before} before"
        time.sleep(0.5)


def check_all(server, args):
    described = asyncio.run(good_answers(server))
    server.wait_idle()
    # A connection of a moment ago may still be open, and a helper thread rest.
    before = (server.num_files(), server.num_threads())
    watch, counts = Watch(server), collections.Counter()
    asyncio.run(visits(server, args, watch, counts))
    for how, count in counts.most_common():
        print(f"      {count:6} left {how}")
    server.wait_idle()
    back_to(server, "files and sockets", server.num_files, before[0])
    back_to(server, "threads", server.num_threads, before[1])
    assert asyncio.run(good_answers(server)) == described, "the same question has another answer now"
    lost = {how: count for how, count in counts.items() if "no answer" in how or "cut short" in how or "status 5" in how}
    assert not lost, f"the server let clients down: {lost}"
    return f"{counts.total()} visits; {watch.check(args.seconds)}"


def cpu_until_quiet(server, work):
    """The processor's time that the server takes for something, and after it until it rests."""
    before = server.cpu_seconds()
    work(before)
    last = None
    while (now := server.cpu_seconds()) != last:
        last = now
        time.sleep(0.5)
    return now - before


def check_preparation():
    """Who leaves while pictures are decoded is not worked for any further: the rest of them is never decoded."""
    # Together just below what a request's pictures may decode to; the model sees them small.
    large = [pictures.flat_png(5000, 4000, (30 * i, 0, 0)) for i in range(8)]
    body = {"messages": pictures.question(DESCRIBE, *large), "max_tokens": 1, "mm_processor_kwargs": {"max_pixels": 4096}}
    raw = post("/v1/chat/completions", body)
    # One after another, on any machine.
    with Served("--preprocess-threads", "1", "--threads", "1", env={"RAYON_NUM_THREADS": "1"}) as server:
        whole = cpu_until_quiet(server, lambda _: asyncio.run(exchange(server, raw)))

        def leave(before):
            with socket.create_connection((server.host, server.port)) as connection:
                connection.sendall(raw)
                while server.cpu_seconds() < before + 0.25 * whole:
                    time.sleep(0.01)

        left = cpu_until_quiet(server, leave)
        server.check_left_clean()
    said = f"{left:.1f} s of CPU instead of {whole:.1f} s"
    assert left < 0.7 * whole, said
    return said


# Streams that keep a server busy for longer than the time between comments, one after another.
LINE_LENGTH = 12
# Seconds between looks of the server's at a connection, with room for a loaded machine.
NOTICED_S = 10


def long_chat(**more):
    """One that goes on for minutes on two cores."""
    chat = {"messages": [{"role": "user", "content": COUNT}], "max_tokens": 7000, "ignore_eos": True, **more}
    return post("/v1/chat/completions", chat)


def check_bytes_behind(server):
    """Who leaves is noticed, whatever it has sent behind its request."""
    with socket.create_connection((server.host, server.port)) as connection:
        connection.sendall(long_chat() + b"\r\nGET / HTTP/1.1\r\n")
        server.wait_for(lambda: server.metrics()["vllm:num_requests_running"], "the request")
    start = time.monotonic()
    server.wait_idle(NOTICED_S)
    return f"after {time.monotonic() - start:.1f} s"


def check_unread():
    """A client that reads nothing is left, and its request ends."""
    with Served("--read-timeout", "2") as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((server.host, server.port))
        connection.sendall(long_chat(stream=True, n=8, logprobs=True, top_logprobs=20, temperature=1))
        server.wait_for(lambda: server.metrics()["vllm:num_requests_running"], "the request")
        start = time.monotonic()
        server.wait_idle(PATIENCE_S)
        assert "finish_reason=\"abort\"" in server.said() or "status=499" in server.said(), server.said()[-1000:]
        return f"after {time.monotonic() - start:.1f} s"


async def wait_in_line(server):
    """Streams one after another, the last of which waits; gives its first words."""
    raw = long_chat(stream=True)
    ahead = [await asyncio.open_connection(server.host, server.port) for _ in range(LINE_LENGTH)]
    for _, writer in ahead:
        writer.write(raw)
    await asyncio.sleep(1)
    reader, writer = await asyncio.open_connection(server.host, server.port)
    writer.write(raw)
    response = await respond(reader)
    first = await anext(response.pieces())
    for _, other in [*ahead, (reader, writer)]:
        other.close()
    return first


def check_waiting():
    """Whoever waits for an answer is told that it goes on, and the operator how the engine does."""
    with Served("--max-num-seqs", "1") as server:
        first = asyncio.run(wait_in_line(server))
        assert first == b": keep-alive\n\n", first
        assert "foveal_server::figures" in server.said(), "no line of figures within ten seconds"
        server.check_left_clean()
    return "a comment in the stream, and a line of figures in the log"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    # As many answers side by side as there are clients, in a KV cache that they fill: some make room for others.
    with Served("--max-num-seqs", str(args.clients), "--kv-cache-memory-bytes", str(64 << 20)) as server:
        passed = [
            report(f"vanish: {args.clients} clients for {args.seconds:.0f} s", lambda: check_all(server, args)),
            report("vanish: with bytes behind the request", lambda: check_bytes_behind(server)),
            report("vanish: the server is idle again and its log clean", server.check_left_clean),
        ]
    passed.append(report("vanish: without reading", check_unread))
    passed.append(report("vanish: while others are answered", check_waiting))
    passed.append(report("vanish: while pictures are prepared", check_preparation))
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
