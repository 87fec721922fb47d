"""Writes photo_512.jpg and pictures/: a small picture of our own in every format and mode, and Pillow's upright RGB of each as NAME.rgb.png."""
import io, os, struct, zlib
import numpy as np
from PIL import Image, ImageOps
from noise import noise

H, W = 46, 61
y, x = np.mgrid[0:H, 0:W].astype(np.float64)
photo = np.stack([128 + 90 * np.sin(x / 9) * np.cos(y / 7), 255 * x / W, 120 + 80 * np.cos((x + y) / 11)], -1)
photo = np.clip(photo + noise(H, W, 3).astype(np.float64) / 16 - 8, 0, 255).astype(np.uint8)
rgb = Image.fromarray(photo); alpha = Image.fromarray((255 * y / H).astype(np.uint8))
rgba = rgb.copy(); rgba.putalpha(alpha)


def png16(colour, samples, transparent=None):
    """A 16-bit PNG, which Pillow doesn't write for colours."""
    chunk = lambda t, d: struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d))
    rows = b"".join(b"\0" + r.astype(">u2").tobytes() for r in samples)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", W, H, 16, colour, 0, 0, 0)) + (b"" if transparent is None else chunk(b"tRNS", transparent)) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def saved(image, name, **kw):
    image.save(f"pictures/{name}", **kw)


os.makedirs("pictures", exist_ok=True)
for f in os.listdir("pictures"): os.remove(f"pictures/{f}")
saved(rgb, "rgb.png"); saved(rgba, "rgba.png"); saved(rgb.convert("L"), "gray.png"); saved(rgba.convert("LA"), "gray_alpha.png"); saved(rgb.convert("1"), "one_bit.png")
p = rgb.quantize(37); saved(p, "palette.png"); saved(p, "palette_transparent.png", transparency=5); saved(rgb.quantize(4), "palette_2bit.png", bits=2)
saved(rgb.convert("L"), "gray_transparent.png", transparency=100)
wide = (photo.astype(np.uint16) << 8) | noise(H, W, 3)
gray16 = wide[:, :, 0].copy(); gray16[::3] >>= 9
for name, colour, samples in [("gray16", 0, gray16), ("rgb16", 2, wide), ("gray_alpha16", 4, wide[:, :, :2]), ("rgba16", 6, np.concatenate([wide, wide[:, :, :1]], -1))]:
    open(f"pictures/{name}.png", "wb").write(png16(colour, samples.reshape(H, -1)))
open("pictures/gray_transparent16.png", "wb").write(png16(0, gray16, struct.pack(">H", gray16[4, 7])))
open("pictures/rgb_transparent16.png", "wb").write(png16(2, wide.reshape(H, -1), struct.pack(">HHH", *wide[4, 7])))
saved(rgb, "rgb.bmp"); saved(p, "palette.bmp"); saved(rgb.convert("L"), "gray.bmp"); saved(rgba, "rgba.bmp")
saved(rgb, "lossless.webp", lossless=True); saved(rgba, "lossless_alpha.webp", lossless=True, exact=True); saved(rgb, "lossy.webp", quality=85); saved(rgba, "lossy_alpha.webp", quality=85)
saved(p, "palette.gif"); saved(p, "transparent.gif", transparency=5); saved(p, "animated.gif", save_all=True, append_images=[rgb.rotate(180).quantize(20)], duration=100)
saved(rgba, "animated.webp", save_all=True, append_images=[rgba.rotate(180)], duration=100, lossless=True, exact=True)
small = p.crop((0, 0, 20, 16)); b = io.BytesIO(); small.save(b, "GIF"); g = bytearray(b.getvalue()); g[6:10] = struct.pack("<HH", 30, 24)
i = g.index(b"\x2c", 13 + 3 * 2 ** ((g[10] & 7) + 1)); g[i + 1:i + 5] = struct.pack("<HH", 7, 5); open("pictures/small_frame.gif", "wb").write(g)
for s, name in [(0, "444"), (1, "422"), (2, "420")]: saved(rgb, f"{name}.jpg", quality=90, subsampling=s)
saved(rgb, "progressive.jpg", quality=85, progressive=True); saved(rgb.convert("L"), "gray.jpg", quality=90); saved(rgb.convert("CMYK"), "cmyk.jpg", quality=95)
for o in range(1, 9):
    e = Image.Exif(); e[0x0112] = o; saved(rgb, f"orientation_{o}.jpg", quality=95, subsampling=0, exif=e)
e = Image.Exif(); e[0x0112] = 6; saved(rgb, "orientation_6.png", exif=e); saved(rgb, "orientation_8.webp", lossless=True, exif=e)
# For the benchmark: the size, subsampling and bytes of an ordinary photo.
y, x = np.mgrid[0:512, 0:512].astype(np.float64)
big = np.stack([128 + 90 * np.sin(x / 19) * np.cos(y / 17), 255 * x / 512, 120 + 80 * np.cos((x + y) / 31)], -1) + noise(512, 512, 1).astype(np.float64) / 12 - 10
Image.fromarray(np.clip(big, 0, 255).astype(np.uint8)).save("photo_512.jpg", quality=85, subsampling=2)
for f in sorted(os.listdir("pictures")):
    image = ImageOps.exif_transpose(Image.open(f"pictures/{f}")).convert("RGB"); image.info = {}
    image.save(f"pictures/{f}.rgb.png", optimize=True)
