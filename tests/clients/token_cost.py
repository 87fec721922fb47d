"""What a streamed token costs the server's threads, by the processor's time that each kind of thread took.

token_cost.py [--streams 256] [--tokens 400]

A measurement, no check: run.sh leaves it out. Build with --release and name that program by FOVEAL_BINARY.
"""
import argparse
import asyncio
import collections
from pathlib import Path

from http1 import post
from served import COUNT, Served, name_and_seconds


def seconds_by_kind(server):
    """The processor's time so far by the threads' name, without its number."""
    seconds = collections.Counter()
    for task in Path(f"/proc/{server.pid}/task").iterdir():
        name, used = name_and_seconds(task / "stat")
        seconds[name.rstrip("-0123456789")] += used
    return seconds


async def stream(server, num_tokens):
    """Reads one answer as it comes; gives its pieces."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    chat = {"messages": [{"role": "user", "content": COUNT}], "max_tokens": num_tokens, "ignore_eos": True, "stream": True}
    writer.write(post("/v1/chat/completions", chat))
    num_pieces = 0
    while piece := await reader.read(1 << 16):
        num_pieces += piece.count(b"data: {")
    writer.close()
    return num_pieces


async def all_streams(server, num_streams, num_tokens):
    return sum(await asyncio.gather(*(stream(server, num_tokens) for _ in range(num_streams))))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=400)
    args = parser.parse_args()
    with Served("--max-num-seqs", str(args.streams), "--kv-cache-memory-bytes", str(2 << 30)) as server:
        before = seconds_by_kind(server)
        num_tokens = asyncio.run(all_streams(server, args.streams, args.tokens))
        for name, seconds in sorted(seconds_by_kind(server).items()):
            print(f"{name:24} {(seconds - before[name]) / num_tokens * 1e6:8.1f} us a token")


if __name__ == "__main__":
    main()
