"""Writes resize.json: checksums of torchvision's uint8 antialiased bicubic resize of noise."""
import json, zlib
import numpy as np, torch
from torchvision.transforms.v2 import functional as F
from torchvision.transforms import InterpolationMode
from noise import noise

CASES = [((37, 53), (28, 56)), ((53, 37), (84, 28)), ((7, 13), (84, 56)), ((300, 400), (28, 28)), ((64, 64), (64, 32)),
         ((64, 64), (32, 64)), ((64, 48), (64, 96)), ((48, 64), (96, 64)), ((1, 1), (28, 28)), ((1, 200), (28, 420)),
         ((131, 257), (140, 252)), ((513, 377), (504, 364)), ((100, 100), (100, 100)), ((2, 2), (3, 5)), ((97, 3), (32, 32)),
         ((480, 640), (476, 644)), ((211, 1021), (64, 320)), ((28, 28), (1008, 1036))]
out = []
for (h, w), (th, tw) in CASES:
    a = noise(h, w, 3)
    t = torch.from_numpy(a).permute(2, 0, 1).contiguous()
    r = F.resize(t, [th, tw], interpolation=InterpolationMode.BICUBIC, antialias=True).permute(1, 2, 0).contiguous().numpy()
    out.append({"source": [h, w], "target": [th, tw], "crc32": zlib.crc32(r.tobytes()), "sum": int(r.astype(np.int64).sum()),
                "first": r.reshape(-1)[:12].tolist()})
json.dump(out, open("resize.json", "w"), indent=0)
