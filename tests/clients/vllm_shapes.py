"""What `vllm bench serve` sends and how it reads: its request bodies over its HTTP client, without vLLM itself.

Backends `openai` and `openai-chat`, datasets `random` and `random-mm`. It asks for the model's name, aligns its prompts to
the server's tokenizer, asks once to see that the server is ready, then all at once. A body's text is a stream of events;
the time to the first token is that of the first event with choices, and the counts stand in a last event without any.

vllm_shapes.py    needs aiohttp, pillow
"""
import asyncio
import base64
import codecs
import io
import json
import random
import time

import aiohttp
from PIL import Image

from checks import check, equal, run_checks
from served import MODEL, Served

INPUT_LEN, OUTPUT_LEN, NUM_PROMPTS = 48, 20, 8
# The ids of the model's ordinary tokens; control tokens come after them.
NUM_ORDINARY = 500


def random_jpeg(width, height, seed):
    """A picture of `random-mm`: each pixel on its own, which no encoder makes small."""
    picture = Image.frombytes("RGB", (width, height), random.Random(seed).randbytes(width * height * 3))
    data = io.BytesIO()
    picture.save(data, "JPEG")
    url = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def completion_body(prompt, **more):
    """The body of backend `openai`."""
    return {
        "model": MODEL, "prompt": prompt, "repetition_penalty": 1.0, "max_tokens": OUTPUT_LEN, "logprobs": None,
        "stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True, **more,
    }


def chat_body(prompt, pictures=(), **more):
    """The body of backend `openai-chat`: the pictures come after the text."""
    content = [{"type": "text", "text": prompt}, *pictures]
    return {
        "model": MODEL, "messages": [{"role": "user", "content": content}], "max_completion_tokens": OUTPUT_LEN,
        "stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True, **more,
    }


class Outcome:
    """What is read of one stream."""

    def __init__(self):
        self.text, self.usage, self.ttft, self.gaps, self.is_done = "", None, None, [], False


async def ask(session, url, body, request_id=None):
    """Sends one request and reads its stream as the benchmark does."""
    headers = {"x-request-id": request_id} if request_id else {}
    outcome, begun = Outcome(), time.perf_counter()
    last = begun
    async with session.post(url, json=body, headers=headers) as response:
        equal(response.status, 200, await response.text() if response.status != 200 else "")
        equal(response.headers["x-request-id"], request_id or response.headers["x-request-id"])
        pending, decoder = "", codecs.getincrementaldecoder("utf-8")()
        async for piece in response.content.iter_any():
            pending += decoder.decode(piece)
            while "\n\n" in pending:
                message, pending = pending.split("\n\n", 1)
                if message.startswith(":"):
                    continue
                assert message.startswith("data: ") and "\n" not in message, f"no event of one line: {message!r}"
                data = message.removeprefix("data: ")
                if data == "[DONE]":
                    outcome.is_done = True
                    continue
                assert not outcome.is_done, f"after [DONE]: {data}"
                data, now = json.loads(data), time.perf_counter()
                if choices := data["choices"]:
                    text = choices[0]["text"] if "text" in choices[0] else choices[0]["delta"].get("content")
                    outcome.text += text or ""
                    if outcome.ttft is None:
                        outcome.ttft = now - begun
                    else:
                        outcome.gaps.append(now - last)
                    last = now
                else:
                    outcome.usage = data["usage"]
        equal(pending, "", "left over after the last event")
    return outcome


def benchmark(server, path, bodies):
    """One request alone, then all at once; gives what was read of each."""
    async def run():
        connector = aiohttp.TCPConnector(limit=0, limit_per_host=0, keepalive_timeout=60)
        async with aiohttp.ClientSession(connector=connector) as session:
            url = server.url + path
            await ask(session, url, bodies[0])
            return await asyncio.gather(*(ask(session, url, body, f"bench-0-{i}") for i, body in enumerate(bodies)))

    outcomes = asyncio.run(run())
    for outcome in outcomes:
        assert outcome.is_done and outcome.ttft and outcome.usage, vars(outcome)
        # The token's rate is (latency - ttft) / (tokens - 1): the first event must be a token's, not the request's.
        assert len(outcome.gaps) >= OUTPUT_LEN // 2, f"{len(outcome.gaps) + 1} events for {OUTPUT_LEN} tokens"
        equal(outcome.usage["completion_tokens"], OUTPUT_LEN)
    return outcomes


def fetch(server, method, path, **options):
    async def run():
        async with aiohttp.ClientSession() as session:
            async with session.request(method, server.url + path, **options) as response:
                response.raise_for_status()
                return await (response.text() if path == "/metrics" else response.json())

    return asyncio.run(run())


def random_prompts(server):
    """Prompts of ordinary tokens, cut to their length as the server's tokenizer counts them."""
    rng = random.Random(0)
    prompts = []
    for _ in range(NUM_PROMPTS):
        tokens = [rng.randrange(NUM_ORDINARY) for _ in range(INPUT_LEN)]
        text = fetch(server, "POST", "/detokenize", json={"model": MODEL, "tokens": tokens})["prompt"]
        body = {"model": MODEL, "prompt": text, "add_special_tokens": False}
        tokens = fetch(server, "POST", "/tokenize", json=body)["tokens"][:INPUT_LEN]
        prompts.append(fetch(server, "POST", "/detokenize", json={"model": MODEL, "tokens": tokens})["prompt"])
    return prompts


@check("the first model's name, and the metrics that it looks through")
def first_model(server):
    card = fetch(server, "GET", "/v1/models")["data"][0]
    equal((card["id"], bool(card["root"])), (MODEL, True))
    for line in fetch(server, "GET", "/metrics").split("\n"):
        if line.strip() and not line.startswith("#"):
            float(line.rsplit(None, 1)[1])


@check("--backend openai --dataset-name random")
def completions(server):
    prompts = random_prompts(server)
    outcomes = benchmark(server, "/v1/completions", [completion_body(prompt) for prompt in prompts])
    body = {"model": MODEL, "prompt": prompts[0], "add_special_tokens": False}
    equal(outcomes[0].usage["prompt_tokens"], fetch(server, "POST", "/tokenize", json=body)["count"])
    texts = [outcome.text for outcome in outcomes]
    again = benchmark(server, "/v1/completions", [completion_body(prompt, temperature=0.0) for prompt in prompts])
    equal([outcome.text for outcome in again], texts, "the model's own temperature is 0")


@check("--backend openai with tokens as prompts, log-probabilities and sampling parameters")
def completions_of_tokens(server):
    rng = random.Random(1)
    prompts = [[rng.randrange(NUM_ORDINARY) for _ in range(INPUT_LEN)] for _ in range(NUM_PROMPTS)]
    more = {"logprobs": 1, "top_p": 0.9, "top_k": 20, "min_p": 0.01, "temperature": 0.7, "frequency_penalty": 0.1,
            "presence_penalty": 0.1, "repetition_penalty": 1.05}
    outcomes = benchmark(server, "/v1/completions", [completion_body(prompt, **more) for prompt in prompts])
    equal({outcome.usage["prompt_tokens"] for outcome in outcomes}, {INPUT_LEN})


@check("--backend openai-chat --dataset-name random")
def chats(server):
    benchmark(server, "/v1/chat/completions", [chat_body(prompt) for prompt in random_prompts(server)])


@check("--backend openai-chat --dataset-name random-mm")
def chats_with_pictures(server):
    # Its own sizes; the larger one once, because it takes a CPU seconds.
    small, large = (256, 256), (1280, 720)
    bodies, image_tokens = [], []
    for i, prompt in enumerate(random_prompts(server)):
        chosen = [large] if i == 1 else [small] * (1 + i % 2)
        bodies.append(chat_body(prompt, [random_jpeg(*size, seed=10 * i + j) for j, size in enumerate(chosen)]))
        # A token for each square of 32 pixels, sides rounded: 720 is 22.5 of them, which rounds to the even 22.
        image_tokens.append(sum(round(width / 32) * round(height / 32) for width, height in chosen))
    outcomes = benchmark(server, "/v1/chat/completions", bodies)
    equal([outcome.usage["prompt_tokens_details"]["image_tokens"] for outcome in outcomes], image_tokens)


if __name__ == "__main__":
    with Served() as served:
        run_checks("vllm bench serve", served)
