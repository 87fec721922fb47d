"""A thousand malformed requests each get a 4xx in OpenAI's form, while eight good streams go on unharmed.

malformed.py [--count 1000] [--seed 1]
"""
import argparse
import asyncio
import collections
import json
import re
import sys

import pictures
from checks import equal, report
from http1 import exchange, post, stream_text
from malformed_requests import KINDS, MAX_BODY_BYTES, generate
from served import COUNT, DESCRIBE, SHAPES, Served

# Malformed requests on their way at once: few, so that they last while good streams come and go.
NUM_SENDERS = 2
NUM_STREAMS, MIN_RUNS = 8, 3
# Words of the language, its libraries and this machine that no client should read.
LEAK = re.compile(
    r"\bstruct\b|\benum\b|unknown variant|\b[ui](8|16|32|64|128|size)\b|\bf(32|64)\b|::|\bOption\b|\bVec\b|\bString\b|\btuple\b"
    r"|\bsequence\b|\bmap\b|\bunit\b|invalid type|invalid length|EOF|unwrap|panick|\bmutex\b"
    r"|serde|hyper|axum|tokio|minijinja|reqwest|\burl crate\b|\bimage crate\b|zune|\.rs\b"
    r"|\b0x[0-9a-f]{4,}|/(root|home|work|tmp|usr|proc|etc|rustc)/|127\.0\.0\.1|localhost", re.IGNORECASE)
# The longest message: it may quote the client, but not all of it.
MAX_MESSAGE = 1000
ERROR_TYPES = {"invalid_request_error"}


def fault_of(request, answer):
    """What is wrong with the answer to a malformed request; None if nothing is."""
    if answer is None:
        return None if not request.is_http else "the connection ended without an answer"
    status, headers, body = answer
    if not 400 <= status < 500:
        return f"status {status}: {body[:200]}"
    if not body:
        return None if not request.is_http else f"status {status} without a body"
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return f"status {status}, no error in OpenAI's form: {body[:200]}"
    if set(error) != {"message", "type", "param", "code"} or "application/json" not in headers.get("content-type", ""):
        return f"not in OpenAI's form: {error}, {headers}"
    message, param, code = error["message"], error["param"], error["code"]
    is_form = isinstance(message, str) and message and isinstance(code, str) and isinstance(param, str | None)
    if not is_form or error["type"] not in ERROR_TYPES or re.search(r"[^a-z_]", code):
        return f"not in OpenAI's form: {error}"
    if len(message) > MAX_MESSAGE or len(param or "") > MAX_MESSAGE:
        return f"{len(message)} characters of message, {len(param or '')} of param: {message[:200]}"
    if leak := LEAK.search(message):
        return f"leaks `{leak[0]}`: {message[:300]}"
    return None


def good_chats():
    """Chats whose answers are known from before: texts, and a picture that is encoded anew each time."""
    png = SHAPES.read_bytes()
    counts = [[{"role": "user", "content": COUNT.replace("3", str(first))}] for first in range(1, NUM_STREAMS - 1)]
    chats = [*counts, pictures.question(DESCRIBE, png), pictures.question("List the shapes as JSON.", png)]
    return [{"messages": messages, "temperature": 0, "max_tokens": 40} for messages in chats]


async def run(server, requests):
    """Sends all requests; gives the faults by kind, and how often each good stream ran meanwhile."""
    chats = good_chats()
    references = [await stream_text(server, chat) for chat in chats]
    faults, waiting = collections.defaultdict(list), iter(requests)
    is_over = asyncio.Event()

    async def send():
        for request in waiting:
            answer = await exchange(server, request.raw, request.half_close)
            if fault := fault_of(request, answer):
                faults[request.kind].append((fault, request.raw))

    async def stream(chat, reference):
        runs = 0
        while not is_over.is_set() or runs < MIN_RUNS:
            equal(await stream_text(server, chat), reference, "a good stream")
            runs += 1
        return runs

    streams = [asyncio.create_task(stream(chat, text)) for chat, text in zip(chats, references)]
    senders = [asyncio.create_task(send()) for _ in range(NUM_SENDERS)]
    try:
        await asyncio.gather(*senders)
    finally:
        is_over.set()
        runs = await asyncio.gather(*streams)
    return faults, runs


def check_all(server, count, seed):
    faults, runs = asyncio.run(run(server, list(generate(seed, count))))
    for kind, found in sorted(faults.items()):
        for fault, raw in found[:6]:
            body = raw.split(b"\r\n\r\n", 1)[-1]
            print(f"      {kind}: {fault}\n            {raw[:60]!r} ... {body[:300]!r}", file=sys.stderr)
    assert not faults, f"{sum(map(len, faults.values()))} of {count}: { {kind: len(found) for kind, found in faults.items()} }"
    return f"of {len(KINDS)} kinds; meanwhile {sum(runs)} good answers, {min(runs)} or more of each stream"


def check_log(server):
    """What a client sends begins no line of the log."""
    forged = "2026-01-01T00:00:00Z  INFO forged"
    body = {"model": f"x\n{forged}", f"a\n{forged}": 1, "messages": []}
    for raw in post("/v1/chat/completions", body), post("/v1/chat/completions", {"model": f"x\n{forged}", "messages": []}):
        asyncio.run(exchange(server, raw))
    lines = [line for line in server.said().splitlines() if line.startswith(forged)]
    assert not lines, lines
    return "with names of two lines"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with Served("--max-body-bytes", str(MAX_BODY_BYTES)) as server:
        passed = [
            report(f"malformed: {args.count} requests", lambda: check_all(server, args.count, args.seed)),
            report("malformed: lines of the log", lambda: check_log(server)),
            report("malformed: the server is idle again and its log clean", server.check_left_clean),
        ]
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
