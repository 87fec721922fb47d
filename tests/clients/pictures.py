"""Pictures, whole and broken, as bytes and as data URLs."""
import base64
import random
import struct
import zlib

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_chunk(kind, data):
    """One chunk of a PNG file with its check sum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width, height, bits=8, colour=2):
    """The first chunk of a PNG file: its claim of a size."""
    return PNG_SIGNATURE + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))


def bomb_png(width, height):
    """A whole PNG file that claims a size far beyond its data."""
    return png_header(width, height) + png_chunk(b"IDAT", zlib.compress(bytes(4096))) + png_chunk(b"IEND", b"")


def noise_png(width, height, seed):
    """A picture that no other seed gives."""
    rng = random.Random(seed)
    # A filter byte before each row.
    rows = b"".join(b"\0" + rng.randbytes(width * 3) for _ in range(height))
    return png_of(width, height, rows)


def flat_png(width, height, colour=(200, 30, 30)):
    """A large picture in a small file."""
    return png_of(width, height, (b"\0" + bytes(colour) * width) * height)


def png_of(width, height, rows):
    """A PNG file of raw rows."""
    return png_header(width, height) + png_chunk(b"IDAT", zlib.compress(rows, 1)) + png_chunk(b"IEND", b"")


def data_url(data, kind="image/png"):
    """A picture as a URL that holds it."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def part(data, kind="image/png"):
    """A picture as a part of a message."""
    return {"type": "image_url", "image_url": {"url": data_url(data, kind)}}


def question(text, *pictures):
    """A chat of one message: pictures, then a text."""
    return [{"role": "user", "content": [*map(part, pictures), {"type": "text", "text": text}]}]
