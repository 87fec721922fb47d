"""A generator of malformed requests. The same seed gives the same requests.

A kind is a function of a random generator that gives one request; each comes equally often. What is malformed is always the
client's fault, so the answer to every one is a 4xx.
"""
import copy
import json
import random
import string
import struct
from dataclasses import dataclass

import pictures
from http1 import LAST_CHUNK, chunked, request

CHAT, TEXT, TOKENIZE, DETOKENIZE = "/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"
ENDPOINTS = {
    CHAT: {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2},
    TEXT: {"prompt": "Hello", "max_tokens": 2},
    TOKENIZE: {"prompt": "Hello"},
    DETOKENIZE: {"tokens": [1, 2]},
}
# What the server under test takes at most; its --max-body-bytes.
MAX_BODY_BYTES = 4 << 20


@dataclass
class Malformed:
    """One request as bytes."""
    kind: str
    raw: bytes
    # Says that nothing follows, and listens.
    half_close: bool = False
    # No HTTP: whoever reads it may answer with a status alone, or hang up.
    is_http: bool = True


KINDS = {}


def kind(function):
    """Registers a kind under its function's name."""
    KINDS[function.__name__] = function
    return function


def generate(seed, count):
    """`count` malformed requests, all kinds equally often, in a random order."""
    rng = random.Random(seed)
    names = [name for _ in range(-(-count // len(KINDS))) for name in KINDS][:count]
    rng.shuffle(names)
    for name in names:
        made = KINDS[name](rng)
        yield made if isinstance(made, Malformed) else Malformed(name, made)


def post(path, body):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return request("POST", path, data)


def some_endpoint(rng):
    path = rng.choice(list(ENDPOINTS))
    return path, copy.deepcopy(ENDPOINTS[path])


def word(rng, length=8):
    return "".join(rng.choices(string.ascii_lowercase, k=length))


def chat(content=None, **more):
    """A chat with this content, as bytes."""
    body = copy.deepcopy(ENDPOINTS[CHAT]) | more
    if content is not None:
        body["messages"][0]["content"] = content
    return post(CHAT, body)


# JSON

def is_json(data):
    def refuse(constant):
        raise ValueError(constant)

    try:
        json.loads(data.decode(), parse_constant=refuse)
        return True
    except ValueError:
        return False


@kind
def mutilated_json(rng):
    """A body with a piece cut off, taken out or put in, until it is no JSON any more."""
    path, body = some_endpoint(rng)
    whole = json.dumps(body).encode()
    while True:
        at = rng.randrange(len(whole))
        how = rng.randrange(4)
        if how == 0:
            data = whole[:at]
        elif how == 1:
            data = whole[:at] + whole[at + 1:]
        elif how == 2:
            data = whole[:at] + bytes([rng.randrange(256)]) + whole[at:]
        else:
            data = whole + rng.choice([b"}", b"{}", b",", b"\0", b"x"])
        if not is_json(data):
            return post(path, data)


@kind
def almost_json(rng):
    """What other languages take for JSON."""
    path, body = some_endpoint(rng)
    name, value = next(iter(body.items()))
    whole = json.dumps(body)
    text = rng.choice([
        whole.replace('"', "'"), whole[:-1] + ",}", whole[:-1] + ', "temperature": NaN}', "/* a note */" + whole,
        whole[:-1] + ', "temperature": -Infinity}', whole[:-1] + ', "temperature": .5}', "\ufeff" + whole,
        whole[:-1] + ', "seed": 0x10}', whole[:-1] + ', "seed": 007}', whole[:-1] + ', "stream": True}',
        whole[:-1] + ', "stop": "a\nb"}', whole[:-1] + r', "stop": "\x41"}', f"{name}={value}",
        whole[:-1] + ', "temperature": 1e999}', whole[:-1] + ', "temperature": -1e999}',
    ])
    return post(path, text.encode())


@kind
def not_an_object(rng):
    path, body = some_endpoint(rng)
    value = rng.choice([[], [body], "text", json.dumps(body), 1, -1.5, True, None, [[]]])
    return post(path, value)


@kind
def bad_characters(rng):
    """Bytes that are no UTF-8, and halves of surrogate pairs."""
    path, body = some_endpoint(rng)
    bad = rng.choice([b"\xff", b"\xc3", b"\xe2\x82", b"\xed\xa0\x80", b"\xf8\x88\x80\x80", b"\xc0\xaf", rb"\ud800",
                      rb"\udc00", rb"\ud800\ud800", rb"\ud83d x", rb"\u12", rb"\uzzzz"])
    return post(path, json.dumps(body).encode().replace(b"Hello", b"He" + bad + b"llo").replace(b"[1", b'["' + bad + b'"'))


@kind
def deep_nesting(rng):
    depth = rng.choice([150, 1000, 20_000, 200_000])
    opening, closing = rng.choice([("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
    nested = opening * depth + "1" + closing * depth
    name = rng.choice(["chat_template_kwargs", "messages", "stop", "metadata", "logit_bias"])
    text = rng.choice([nested, opening * depth, f'{{"messages": [{{"role": "user", "content": "x"}}], "{name}": {nested}}}'])
    return post(CHAT, text.encode())


# Types

NUMBERS = {"temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"}
WHOLE = {"max_tokens", "min_tokens", "top_k", "seed", "n"}
FLAGS = {"ignore_eos", "stream"}
OF_BOTH = {name: ("number",) for name in NUMBERS} | {name: ("whole",) for name in WHOLE} | {
    name: ("flag",) for name in FLAGS} | {
    "model": ("text",), "stop": ("text", "list"), "stop_token_ids": ("list",), "stream_options": ("object",)}
FIELDS = {
    CHAT: OF_BOTH | {
        "messages": ("list",), "logprobs": ("flag",), "top_logprobs": ("whole",), "max_completion_tokens": ("whole",),
        "chat_template_kwargs": ("object",), "mm_processor_kwargs": ("object",), "add_generation_prompt": ("flag",)},
    TEXT: OF_BOTH | {"prompt": ("text", "list"), "logprobs": ("whole",)},
    TOKENIZE: {"model": ("text",), "prompt": ("text",), "return_token_strs": ("flag",)},
    DETOKENIZE: {"model": ("text",), "tokens": ("list",)},
}
VALUES = {
    "text": ["", "7", "true"], "whole": [3], "number": [1.5], "flag": [True], "list": [[], [1, 2]],
    "object": [{}, {"a": 1}],
}


def wrong_value(rng, right):
    """A value of none of the types `right`."""
    also = {"number": {"whole"}}
    wrong = [name for name in VALUES if name not in right and not any(name in also.get(r, ()) for r in right)]
    return rng.choice(VALUES[rng.choice(wrong)])


@kind
def wrong_type(rng):
    """A field of another type. Lists stand in for texts, texts for numbers, numbers for flags."""
    path, body = some_endpoint(rng)
    name, right = rng.choice(list(FIELDS[path].items()))
    return post(path, body | {name: wrong_value(rng, right)})


@kind
def wrong_type_within(rng):
    """The same, deeper."""
    picture = pictures.part(pictures.flat_png(32, 32))
    text = {"type": "text", "text": "x"}
    user = {"role": "user", "content": "x"}
    junk = lambda *right: wrong_value(rng, right)
    body = rng.choice([
        {"messages": [junk("object")]},
        {"messages": [user | {"role": junk("text")}]},
        {"messages": [user | {"role": None}]},
        {"messages": [user | {"content": rng.choice([1, True, {}, {"type": "text", "text": "x"}, None])}]},
        {"messages": [user | {"content": [junk("object")]}]},
        {"messages": [user | {"content": [text | {"text": junk("text")}]}]},
        {"messages": [user | {"content": [text | {"type": junk("text")}]}]},
        {"messages": [user | {"content": [picture | {"image_url": rng.choice([1, True, [], ["x"], {}, None])}]}]},
        {"messages": [user | {"content": [picture | {"image_url": {"url": junk("text")}}]}]},
        {"messages": [user | {"content": [picture | {"image_url": picture["image_url"] | {"detail": [1]}}]}]},
        {"messages": [user | {"name": junk("text")}]},
        {"messages": [user | {"tool_calls": junk("list")}]},
        {"messages": [user | {"tool_call_id": junk("text")}]},
        {"messages": [["user", "x"]]},
        {"messages": [user | {"content": [["text", "x", None]]}]},
        {"messages": [user], "stop": [rng.choice([1, None, [], {}])]},
        {"messages": [user], "stop_token_ids": [rng.choice(["1", -1, 1.5, None, [1], 1 << 40])]},
        {"messages": [user], "stream": True, "stream_options": {"include_usage": junk("flag")}},
        {"messages": [user], "stream": True, "stream_options": [True]},
        {"messages": [user], "mm_processor_kwargs": {"min_pixels": junk("whole")}},
        {"messages": [user], "mm_processor_kwargs": {"size": junk("object")}},
        {"messages": [user], "mm_processor_kwargs": {"size": {"longest_edge": -1}}},
    ])
    return post(CHAT, body)


@kind
def wrong_prompt(rng):
    prompt = rng.choice([1, True, {}, {"text": "x"}, ["x", 1], [1, "x"], [[1], "x", 2], [-1], [1.5], [None], [[["x"]]], [],
                         [[]], [1 << 20], [1 << 33], [[1, 1 << 20]], ["x"] * 129, [1] * 9000, "x " * 20_000, None])
    return post(TEXT, {"prompt": prompt, "max_tokens": 1})


@kind
def missing_field(rng):
    path, body = rng.choice([
        (CHAT, {}), (CHAT, {"messages": []}), (CHAT, {"messages": None}), (CHAT, {"messages": [{}]}),
        (CHAT, {"messages": [{"role": "user"}]}), (CHAT, {"messages": [{"content": "x"}]}),
        (CHAT, {"messages": [{"role": "system", "content": None}]}),
        (CHAT, {"messages": [{"role": "user", "content": [{}]}]}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
        (CHAT, {"messages": [{"role": "user", "content": [{"text": "x"}]}]}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}),
        (TEXT, {}), (TOKENIZE, {}), (TOKENIZE, {"messages": []}), (DETOKENIZE, {}), (TEXT, {"model": "built-in"}),
    ])
    return post(path, body)


# Values

@kind
def out_of_range(rng):
    n = rng.choice
    more = rng.choice([
        {"temperature": n([-1, -1e-9, 1e300])}, {"top_p": n([0, -0.5, 1.01, 50])}, {"top_k": n([-2, -1000])},
        {"min_p": n([-0.1, 1.5])}, {"max_tokens": n([0, -1])}, {"n": n([0, -1, 17, 1 << 60])},
        {"repetition_penalty": n([0, -1, 1e39])}, {"presence_penalty": n([-3, 2.5])}, {"frequency_penalty": n([-3, 2.5])},
        {"stop": n([[""], "", ["x"] * 17])}, {"min_tokens": 3, "max_tokens": 2},
        {"seed": n([1 << 63, 1 << 70, 1.5])}, {"logprobs": True, "top_logprobs": n([21, -1, 1 << 40])},
        {"top_logprobs": 2}, {"logprobs": False, "top_logprobs": 2}, {"stream_options": {"include_usage": True}},
        {"stream": False, "stream_options": {}}, {"max_tokens": 2, "max_completion_tokens": 3},
        {"max_tokens": 10**40}, {"seed": -(10**40)}, {"model": n(["", "gpt-4", "x" * 5000, "../built-in"])},
        {"mm_processor_kwargs": {"max_pixels": 1, "size": {"longest_edge": 2}}},
        {"add_generation_prompt": "yes"}, {"min_tokens": -1},
    ])
    return chat(**more)


@kind
def unknown_parameter(rng):
    path, body = some_endpoint(rng)
    name = rng.choice([word(rng), "temprature", "maxTokens", "messages ", "", "x" * 3000, "\u0000", "t\u00e9mp", "__proto__"])
    return post(path, body | {name: rng.choice([1, "x", [], {}, True])})


@kind
def unsupported_parameter(rng):
    name, value = rng.choice(list({
        "tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required", "functions": [{"name": "f"}],
        "function_call": {"name": "f"}, "response_format": {"type": "json_object"}, "logit_bias": {"1": 5},
        "best_of": 2, "echo": True, "use_beam_search": True, "prompt_logprobs": 1, "audio": {"voice": "x"},
        "modalities": ["audio"], "store": True, "reasoning_effort": "high", "prediction": {"type": "content"},
        "web_search_options": {}, "chat_template": "{{ messages }}", "documents": [{"title": "x"}], "guided_json": {},
        "guided_regex": ".*", "structured_outputs": {}, "priority": 1, "bad_words": ["x"], "allowed_token_ids": [1],
        "truncate_prompt_tokens": 1, "continue_final_message": True, "cache_salt": "x", "length_penalty": 2,
        "skip_special_tokens": False, "include_stop_str_in_output": True, "verbosity": "high",
    }.items()))
    return chat(**{name: value})


@kind
def bad_message(rng):
    user = {"role": "user", "content": "x"}
    message = rng.choice([
        user | {"role": rng.choice(["root", "", "User", "user ", "function", "x" * 5000, "us\u0000er"])},
        user | {word(rng): 1}, user | {"audio": {"id": "x"}}, user | {"function_call": {"name": "f"}},
        user | {"content": [{"type": "text", "text": "x", word(rng): 1}]},
        user | {"content": [{"type": rng.choice(["video_url", "input_audio", "file", "", "TEXT", "refusal"])}]},
        user | {"content": [{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}]},
        user | {"content": [{"type": "text", "text": "x", "image_url": {"url": "data:,"}}]},
        user | {"content": [{"type": "image_url", "text": "x"}]},
    ])
    return post(CHAT, {"messages": [{"role": "user", "content": "Hello"}, message]})


# Pictures

def ask_about(*urls):
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return chat([*parts, {"type": "text", "text": "What is it?"}])


@kind
def bad_url(rng):
    return ask_about(rng.choice([
        "", " ", "data:", "data:,", "data:image/png,abc", "data:image/png;base64", "data:image/png;base64,",
        "data:image/png;base64,!!!!", "data:image/png;base64,AAA=A", "data:text/plain;base64,SGVsbG8=",
        "data:image/svg+xml;base64,PHN2Zy8+", "data:application/pdf;base64,JVBERi0=", "base64,AAAA", "AAAA", "a.png",
        "http://10.0.0.1/a.png", "https://example.com/a.png", "http://[::ffff:10.0.0.1]/", "http://", "https://:0/",
        "http://user:word@example.com/a.png", "file:///etc/passwd", "file://../a.png", "ftp://example.com/a.png",
        "javascript:alert(1)", "gopher://example.com", "http://example.com:99999/", "//example.com/a.png",
        "data:image/png;base64," + "A" * 100_001, "http://" + "a" * 70_000, "\u0000", "data:image/png;base64,\u00e9\u00e9",
    ]))


@kind
def broken_picture(rng):
    """Files that are cut short, and files that are something else."""
    whole = pictures.noise_png(40, 30, seed=rng.randrange(9))
    at = rng.randrange(1, len(whole) - 20)
    data = rng.choice([
        whole[:at], rng.randbytes(at), whole[8:], whole[:8] + rng.randbytes(200), b"GIF89a" + rng.randbytes(40),
        b"\xff\xd8\xff\xe0" + rng.randbytes(at), b"RIFF\x10\0\0\0WEBPVP8 " + rng.randbytes(30), b"BM" + rng.randbytes(60),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7\n", b"\0" * 1000, b"II*\0" + rng.randbytes(100),
    ])
    return ask_about(pictures.data_url(data))


@kind
def hostile_picture(rng):
    """Small files that claim to be large, and shapes that no model takes."""
    bmp = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 1000, 0, 0, 54, 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(900)
    gif = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6) + b"," + struct.pack(
        "<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02\x44\x01\0;"
    jpeg = b"\xff\xd8\xff\xc0\x00\x11\x08" + struct.pack(">HH", 65500, 65500) + b"\x03\x01\x22\0\x02\x11\x01\x03\x11\x01"
    webp = b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0\xff\x3f\0\xff\x3f\0" + bytes(8)
    data = rng.choice([
        pictures.bomb_png(60000, 60000), pictures.bomb_png(0, 10), pictures.bomb_png((1 << 31) - 1, 1),
        pictures.bomb_png(100_000, 100_000), pictures.flat_png(2000, 2), pictures.flat_png(1, 1500), bmp, gif, jpeg, webp,
    ])
    return ask_about(pictures.data_url(data))


@kind
def too_many_pictures(rng):
    """More pictures than a request may have, and few that decode to more bytes than it may take."""
    small = pictures.data_url(pictures.flat_png(32, 32))
    large = pictures.data_url(pictures.bomb_png(8000, 8000))
    return ask_about(*rng.choice([[small] * 65, [small] * 500, [large] * 65, [large] * 3]))


@kind
def bad_pixel_limits(rng):
    picture = pictures.part(pictures.flat_png(64, 64))
    limits = rng.choice([
        {"min_pixels": 0}, {"max_pixels": 1}, {"max_pixels": 1 << 50}, {"min_pixels": 1 << 19, "max_pixels": 4096},
        {"size": {"shortest_edge": 1 << 60}}, {"patch_size": 7}, {"size": {"height": 5}},
    ])
    return chat([picture], mm_processor_kwargs=limits)


# HTTP

@kind
def wrong_content_type(rng):
    path, body = some_endpoint(rng)
    content_type = rng.choice([None, "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
                               "application/xml", "application/jsonp", "image/png", "json", "text/json", "*/*"])
    return request("POST", path, json.dumps(body).encode(), content_type=content_type)


@kind
def wrong_method(rng):
    posted = rng.random() < 0.6
    path = rng.choice(list(ENDPOINTS)) if posted else rng.choice(["/v1/models", "/health", "/metrics", "/version"])
    methods = ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "GET" if posted else "POST"]
    return request(rng.choice(methods), path, b"{}")


@kind
def unknown_path(rng):
    path = rng.choice(["/v1", "/v1/", "/v1/chat", "/v1/chat/completions/", "/v1/models/x", "/v1/models/%ff", "/v1/models/a%2Fb/c", "/v1/models/", "/v2/chat/completions", "//", "/.env",
                       "/../../secret", "/%2e%2e/%2e%2e/secret", "/v1/embeddings", "/" + word(rng), "/" + "a" * 4000,
                       "/v1/chat/completions%00", "/%ff%fe", "/V1/MODELS"])
    return request(rng.choice(["GET", "POST"]), path, b"{}")


@kind
def too_large_a_body(rng):
    """Declared and sent, declared alone, and in chunks without a declaration."""
    path = rng.choice(list(ENDPOINTS))
    how = rng.randrange(3)
    if how == 0:
        length = rng.choice([MAX_BODY_BYTES + 1, 1 << 31, 1 << 40, (1 << 63) - 1])
        return request("POST", path, b'{"messages": ', [("Content-Length", length)])
    body = json.dumps({"messages": [{"role": "user", "content": "x" * (MAX_BODY_BYTES + 1)}]}).encode()
    if how == 1:
        return request("POST", path, body)
    return request("POST", path, chunked(body, rng.choice([1000, 65536, len(body)])) + LAST_CHUNK,
                   [("Transfer-Encoding", "chunked")])


@kind
def body_cut_short(rng):
    """The client says that nothing follows, and waits for an answer."""
    path, body = some_endpoint(rng)
    data = json.dumps(body).encode()
    if rng.random() < 0.5:
        raw = request("POST", path, data[:rng.randrange(len(data))], [("Content-Length", len(data) + rng.randrange(1, 99))])
    else:
        pieces = chunked(data, rng.randrange(1, 40))
        raw = request("POST", path, pieces[:rng.randrange(len(pieces))], [("Transfer-Encoding", "chunked")])
    return Malformed("body_cut_short", raw, half_close=True)


@kind
def bad_framing(rng):
    """Lengths and chunks that don't add up."""
    body = b'{"prompt": "x"}'
    headers, sent = rng.choice([
        ([("Content-Length", "-1")], body), ([("Content-Length", "x")], body), ([("Content-Length", "1e3")], body),
        ([("Content-Length", "5"), ("Content-Length", "6")], body), ([("Content-Length", str(1 << 70))], body),
        ([("Transfer-Encoding", "chunked")], b"zz\r\n" + body), ([("Transfer-Encoding", "chunked")], b"-5\r\n" + body),
        ([("Transfer-Encoding", "chunked")], b"f" * 17 + b"\r\n" + body), ([("Transfer-Encoding", "chunked")], b"5\r\n" + body),
        ([("Transfer-Encoding", "gzip")], body), ([("Transfer-Encoding", "chunked, gzip")], body),
    ])
    return Malformed("bad_framing", request("POST", TEXT, sent, headers), half_close=True, is_http=False)


@kind
def no_http(rng):
    """What comes to an open port besides HTTP."""
    raw = rng.choice([
        rng.randbytes(rng.randrange(1, 300)), b"\r\n\r\n\r\n", b"GET\r\n\r\n", b"GET /\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
        b"get /health http/1.1\r\n\r\n", b"GET  /health HTTP/1.1\r\n\r\n", b"GET /he alth HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nbad header\r\n\r\n", b"GET /health HTTP/1.1\r\n: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nx y: z\r\n\r\n", b"GET /health HTTP/1.1\r\nx: a\0b\r\n\r\n", b"G\0T / HTTP/1.1\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\n\r\n", b"GET /health HTTP/1.1\r\nx: " + b"a" * 900_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + b"".join(b"x%d: y\r\n" % i for i in range(500)) + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"SSH-2.0-client\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(60), b"EHLO example.com\r\n", b"*1\r\n$4\r\nPING\r\n",
    ])
    return Malformed("no_http", raw, half_close=True, is_http=False)
