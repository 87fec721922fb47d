"""The `openai` package, as it comes, against a served model: chats with pictures, streams, log-probabilities, errors.

openai_client.py    needs openai, pillow
"""
import asyncio
import io
import math

import openai
from openai import AsyncOpenAI, OpenAI
from PIL import Image

import pictures
from checks import check, equal, raises, run_checks
from served import COUNT, COUNTED, DESCRIBE, DESCRIBED, MODEL, SHAPES, Served

# The package tries again by itself: a check must see the first answer.
NO_RETRIES = {"api_key": "not-asked-for", "max_retries": 0}
PNG = SHAPES.read_bytes()
LOT = 4000


def client_of(server, **options):
    return OpenAI(base_url=f"{server.url}/v1", **{**NO_RETRIES, **options})


def ask(server, messages=COUNT, **options):
    """A chat's answer, whole."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    return client_of(server).chat.completions.create(model=MODEL, messages=messages, **options)


def text_of(server, messages=COUNT, **options):
    return ask(server, messages, **options).choices[0].message.content


def streamed(server, messages=COUNT, **options):
    """A chat's answer as a stream: its chunks, and the text and the last reason of each choice."""
    chunks = list(ask(server, messages, stream=True, **options))
    texts, reasons = {}, {}
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        assert choice.index not in reasons, "nothing follows a reason to finish"
        texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
        if choice.finish_reason:
            reasons[choice.index] = choice.finish_reason
    return chunks, texts, reasons


def jpeg(png):
    data = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(data, "JPEG", quality=95)
    return data.getvalue()


@check("models.list names the model")
def models(server):
    client = client_of(server)
    listed = client.models.list().data
    equal([(model.id, model.object) for model in listed], [(MODEL, "model")])
    equal(client.models.retrieve(MODEL), listed[0])
    missing = {"param": "model", "code": "model_not_found"}
    raises(openai.NotFoundError, lambda: client.models.retrieve("another/model"), **missing)


@check("a chat, whole and streamed")
def chat(server):
    answer = ask(server)
    choice = answer.choices[0]
    equal((choice.message.role, choice.message.content, choice.finish_reason), ("assistant", COUNTED, "stop"))
    equal((answer.object, answer.model), ("chat.completion", MODEL))
    chunks, texts, reasons = streamed(server)
    equal((texts, reasons), ({0: COUNTED}, {0: "stop"}))
    equal({chunk.object for chunk in chunks}, {"chat.completion.chunk"})
    equal(len({chunk.id for chunk in chunks}), 1, "names of one stream")
    roles = [choice.delta.role for chunk in chunks for choice in chunk.choices]
    equal(roles, ["assistant"] + [None] * (len(roles) - 1))
    assert len(chunks) > 10, f"{len(chunks)} chunks are no stream"


@check("the package's own stream helper, and an answer sent back as it came")
def helper(server):
    messages = [{"role": "user", "content": COUNT}]
    with client_of(server).chat.completions.stream(model=MODEL, messages=messages) as events:
        answer = events.get_final_completion().choices[0].message
    equal(answer.content, COUNTED)
    messages += [ask(server).choices[0].message, {"role": "user", "content": "What is 3 plus 4?"}]
    assert text_of(server, messages, max_tokens=20)


@check("roles: system, developer, user, assistant, tool")
def roles(server):
    call = {"id": "a", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "7"},
        {"role": "user", "content": [{"type": "text", "text": COUNT}]},
    ]
    told = ask(server, messages, max_tokens=4)
    as_developer = [{**messages[0], "role": "developer"}, *messages[1:]]
    equal(ask(server, as_developer, max_tokens=4).usage.prompt_tokens, told.usage.prompt_tokens)


@check("a picture as PNG and as JPEG, streamed and with `detail`")
def picture(server):
    asked = pictures.question(DESCRIBE, PNG)
    answer = ask(server, asked)
    text = answer.choices[0].message.content
    assert text.startswith(DESCRIBED), text
    # 256 x 192 pixels, a token for each square of 32.
    equal(answer.usage.prompt_tokens_details.image_tokens, 8 * 6)
    equal(streamed(server, asked)[1], {0: text})
    content = [pictures.part(jpeg(PNG), "image/jpeg"), {"type": "text", "text": DESCRIBE}]
    content[0]["image_url"]["detail"] = "low"
    text = text_of(server, [{"role": "user", "content": content}])
    assert text.startswith(DESCRIBED), text


@check("several pictures, in their order and over several messages")
def several_pictures(server):
    red, blue = pictures.flat_png(96, 64), pictures.flat_png(64, 96, (20, 20, 220))
    alone = ask(server, pictures.question(DESCRIBE, PNG)).usage.prompt_tokens_details.image_tokens
    three = ask(server, pictures.question("Compare the pictures.", PNG, red, blue), max_tokens=30)
    equal(three.usage.prompt_tokens_details.image_tokens, alone + 6 + 6)
    asked = "Which picture has the blue star?"
    equal(text_of(server, pictures.question(asked, PNG, red)), "The first picture has the blue star.")
    equal(text_of(server, pictures.question(asked, red, PNG)), "The second picture has the blue star.")
    before = [*pictures.question("Look.", red), {"role": "assistant", "content": "Yes."}]
    text = text_of(server, [*before, *pictures.question(DESCRIBE, PNG)], max_tokens=60)
    assert text, "no answer to a picture after another one"


@check("n = 2 with a seed: the answers to the seed and the next one")
def several_answers(server):
    options = {"temperature": 1.2, "max_tokens": 24}
    answer = ask(server, n=2, seed=5, **options)
    texts = {choice.index: choice.message.content for choice in answer.choices}
    equal(texts, {copy: text_of(server, seed=5 + copy, **options) for copy in (0, 1)})
    equal(streamed(server, n=2, seed=5, **options)[1], texts)
    counts = [len(choice.logprobs.content) for choice in ask(server, n=2, seed=5, logprobs=True, **options).choices]
    equal(answer.usage.prompt_tokens, ask(server, **options).usage.prompt_tokens, "a prompt counts once")
    assert sum(counts) <= answer.usage.completion_tokens <= sum(counts) + 2, (counts, answer.usage)


@check("a seed decides, whole and streamed, whatever runs beside it")
def seeds(server):
    # Without a picture to be sure of, it says something else each time, and many tokens are parts of characters.
    options = {"temperature": 1.5, "max_tokens": 40}
    alone = {seed: text_of(server, DESCRIBE, seed=seed, **options) for seed in range(6)}
    assert len(set(alone.values())) > 3, f"seeds should differ: {alone}"

    async def together():
        async with AsyncOpenAI(base_url=f"{server.url}/v1", **NO_RETRIES) as client:
            create = client.chat.completions.create
            messages = [{"role": "user", "content": DESCRIBE}]
            asked = [create(model=MODEL, messages=messages, seed=seed, **options) for seed in alone]
            return [answer.choices[0].message.content for answer in await asyncio.gather(*asked)]

    equal(asyncio.run(together()), list(alone.values()))
    equal({seed: streamed(server, DESCRIBE, seed=seed, **options)[1][0] for seed in alone}, alone)


@check("stop texts, whole and streamed")
def stop(server):
    answer = ask(server, stop="7").choices[0]
    equal((answer.message.content, answer.finish_reason), ("3, 4, 5, 6, ", "stop"))
    equal(streamed(server, stop=["zebra", "8, 9"])[1:], ({0: "3, 4, 5, 6, 7, "}, {0: "stop"}))


@check("lengths: max_tokens, max_completion_tokens and vLLM's parameters")
def lengths(server):
    for name in ("max_tokens", "max_completion_tokens"):
        answer = ask(server, **{name: 5})
        equal((answer.choices[0].finish_reason, answer.usage.completion_tokens), ("length", 5))
    more = {"ignore_eos": True, "min_tokens": 50, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    equal(ask(server, max_tokens=50, extra_body=more).usage.completion_tokens, 50)


def same_logprobs(one, other):
    equal([token.token for token in one], [token.token for token in other])
    for a, b in zip(one, other):
        assert math.isclose(a.logprob, b.logprob, abs_tol=1e-6), (a, b)
        equal([top.token for top in a.top_logprobs], [top.token for top in b.top_logprobs])


@check("log-probabilities: sane, those of the text, and the same when streamed")
def logprobs(server):
    for messages in (COUNT, pictures.question(DESCRIBE, PNG)):
        options = {"logprobs": True, "top_logprobs": 5, "temperature": 0}
        choice = ask(server, messages, **options).choices[0]
        tokens = choice.logprobs.content
        for token in tokens:
            best = [top.logprob for top in token.top_logprobs]
            equal((len(best), best), (5, sorted(best, reverse=True)))
            equal(token.logprob, best[0], "greedy takes the best token")
            assert 0 < math.exp(token.logprob) and sum(map(math.exp, best)) <= 1 + 1e-5, token
            equal(len({top.token for top in token.top_logprobs}), 5)
        # The token that ends the answer has no bytes: it is no part of the text.
        text = b"".join(bytes(token.bytes or []) for token in tokens).decode()
        equal(text, choice.message.content, "the tokens' bytes")
        chunks = streamed(server, messages, **options)[0]
        pieces = [c.logprobs.content for chunk in chunks for c in chunk.choices if c.logprobs]
        same_logprobs([token for piece in pieces for token in piece], tokens)
    equal(ask(server, logprobs=True, max_tokens=1).choices[0].logprobs.content[0].top_logprobs, [])
    equal(ask(server, max_tokens=1).choices[0].logprobs, None)


@check("usage, and stream_options")
def usage(server):
    whole = ask(server).usage
    equal(whole.total_tokens, whole.prompt_tokens + whole.completion_tokens)
    chunks = streamed(server, stream_options={"include_usage": True})[0]
    equal((chunks[-1].choices, [chunk.usage for chunk in chunks[:-1]]), ([], [None] * (len(chunks) - 1)))
    last = chunks[-1].usage
    equal((last.prompt_tokens, last.completion_tokens), (whole.prompt_tokens, whole.completion_tokens))
    equal({chunk.usage for chunk in streamed(server)[0]}, {None})
    options = {"include_usage": True, "continuous_usage_stats": True}
    counts = [chunk.usage.completion_tokens for chunk in streamed(server, stream_options=options)[0]]
    equal((counts, counts[-1]), (sorted(counts), whole.completion_tokens))


@check("completions: a text, tokens, lists of both, n, log-probabilities, streamed")
def completions(server):
    create = client_of(server).completions.create
    prompt = f"<|im_start|>user\n{COUNT}<|im_end|>\n<|im_start|>assistant\n"
    options = {"model": MODEL, "max_tokens": 60, "temperature": 0}
    equal(create(prompt=prompt, **options).choices[0].text, COUNTED)
    tokens = client_of(server).post(
        "../tokenize", body={"model": MODEL, "prompt": prompt, "add_special_tokens": False}, cast_to=object)["tokens"]
    equal(create(prompt=tokens, **options).choices[0].text, COUNTED)
    for prompts in ([prompt, prompt + "3"], [tokens, tokens[:-1]]):
        answer = create(prompt=prompts, n=2, **options)
        equal([choice.index for choice in answer.choices], [0, 1, 2, 3])
        alone = [create(prompt=one, **options).choices[0].text for one in prompts]
        equal([choice.text for choice in answer.choices], [alone[0], alone[0], alone[1], alone[1]])
        counts = [create(prompt=one, **options).usage.prompt_tokens for one in prompts]
        equal(answer.usage.prompt_tokens, sum(counts), "each prompt counts once")
    equal(create(prompt=prompt, model=MODEL).usage.completion_tokens, 16, "OpenAI's default")
    chunks = list(create(prompt=prompt, stream=True, logprobs=2, **options))
    whole = create(prompt=prompt, logprobs=2, **options).choices[0]
    equal("".join(choice.text for chunk in chunks for choice in chunk.choices), COUNTED)
    told = [choice.logprobs for chunk in chunks for choice in chunk.choices if choice.logprobs]
    for field in ("tokens", "text_offset"):
        equal([x for piece in told for x in getattr(piece, field)], getattr(whole.logprobs, field), field)
    # But for the last one, which ends the answer.
    for token, offset in list(zip(whole.logprobs.tokens, whole.logprobs.text_offset))[:-1]:
        equal(whole.text[offset:offset + len(token)], token, f"the text at {offset}")


@check("errors are the package's exceptions, with param and code")
def errors(server):
    def bad(param, code, kind=openai.BadRequestError, messages=COUNT, **options):
        error = raises(kind, lambda: ask(server, messages, **options), param=param, code=code)
        assert error.message and error.type == "invalid_request_error", error
        return error

    bad("temperature", "invalid_value", temperature=-1)
    bad("n", "invalid_value", n=0)
    bad("min_tokens", "invalid_value", extra_body={"min_tokens": 1 << 20})
    bad("chat_template_kwargs.tools", "invalid_value", extra_body={"chat_template_kwargs": {"tools": []}})
    limits = {"min_pixels": 1, "max_pixels": 0}
    bad("max_pixels", "invalid_value", messages=pictures.question(DESCRIBE, PNG), extra_body={"mm_processor_kwargs": limits})
    bad("messages", "missing_field", messages=[])
    bad("messages[0].role", "invalid_role", messages=[{"role": "root", "content": "x"}])
    bad("response_format", "unsupported_parameter", response_format={"type": "json_object"})
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    bad("tools", "unsupported_parameter", tools=[tool])
    bad("temprature", "unknown_parameter", extra_body={"temprature": 1})
    for data in (b"no picture", PNG[:999]):
        raises(openai.BadRequestError, lambda: ask(server, pictures.question("?", data)), param="messages[0].content[0]")
    remote = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/a.png"}}]}]
    raises(openai.BadRequestError, lambda: ask(server, remote), param="messages[0].content[0]")
    raises(openai.BadRequestError, lambda: ask(server, stream=True, temperature=-9), param="temperature")
    create = client_of(server).chat.completions.create
    wrong_model = lambda: create(model="gpt-4", messages=[{"role": "user", "content": "Hello"}])
    raises(openai.NotFoundError, wrong_model, param="model", code="model_not_found")
    raises(openai.NotFoundError, lambda: client_of(server).embeddings.create(model=MODEL, input="x"),
           code="unknown_path")
    bad("top_logprobs", "invalid_value", logprobs=True, top_logprobs=21)


@check("413: a body, a picture or their number too large")
def too_large(server):
    raises(openai.APIStatusError, lambda: ask(server, "x" * (65 << 20)), status_code=413, code="request_too_large")
    bomb = pictures.question("?", pictures.bomb_png(60000, 60000))
    raises(openai.APIStatusError, lambda: ask(server, bomb), status_code=413, code="image_too_large")
    many = pictures.question("?", *[pictures.flat_png(32, 32)] * 65)
    raises(openai.APIStatusError, lambda: ask(server, many), status_code=413, code="too_many_images")


@check("401 without the key, 429 without room, which a retry gets over")
def keys_and_room(_):
    with Served("--api-key", "a-key", "--max-requests", "1") as server:
        raises(openai.AuthenticationError, lambda: ask(server), code="invalid_api_key", type="authentication_error")
        client = client_of(server, api_key="a-key")
        messages = [{"role": "user", "content": COUNT}]
        long = client.chat.completions.create(
            model=MODEL, messages=messages, stream=True, max_tokens=LOT, extra_body={"ignore_eos": True})
        next(long)
        ask_again = lambda retries: client.with_options(max_retries=retries).chat.completions.create(
            model=MODEL, messages=messages)
        error = raises(openai.RateLimitError, lambda: ask_again(0), code="overloaded")
        assert int(error.response.headers["retry-after"]) >= 1
        long.close()
        equal(ask_again(20).choices[0].message.content, COUNTED)
        server.check_left_clean()


@check("with_raw_response: the request's own name comes back, else a new one")
def request_ids(server):
    create = client_of(server).with_raw_response.chat.completions.create
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    response = create(extra_headers={"x-request-id": "trace-7"}, **asked)
    equal(response.headers["x-request-id"], "trace-7")
    equal(response.parse()._request_id, "trace-7")
    names = {create(**asked).headers["x-request-id"] for _ in range(3)}
    equal(len(names), 3)
    error = raises(openai.BadRequestError, lambda: ask(server, n=0, extra_headers={"x-request-id": "trace-8"}))
    equal(error.request_id, "trace-8")


@check("closing a stream frees the engine")
def cancellation(server):
    server.wait_idle()
    before = server.metrics()["foveal_steps_total"]
    # A few tokens are read of each; to write all would take LOT steps.
    for n in (1, 3):
        stream = ask(server, stream=True, n=n, max_tokens=LOT, extra_body={"ignore_eos": True})
        for _ in range(3):
            next(stream)
        stream.close()
        server.wait_idle()

    async def cancelled():
        async with AsyncOpenAI(base_url=f"{server.url}/v1", **NO_RETRIES) as client:
            task = asyncio.create_task(client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": COUNT}], max_tokens=LOT,
                extra_body={"ignore_eos": True}))
            while not await asyncio.to_thread(server.busy):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(cancelled())
    server.wait_idle()
    steps = server.metrics()["foveal_steps_total"] - before
    assert steps < LOT, f"{steps} steps for three answers that nobody waited for"
    return f"{steps:.0f} steps for three answers of {LOT} tokens"


if __name__ == "__main__":
    with Served() as served:
        run_checks("openai", served)
