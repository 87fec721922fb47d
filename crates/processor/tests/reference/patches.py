"""Writes patches.json: checksums of HF's patches of noise, taken back to bytes, stills with one temporal copy."""
import json, zlib
import numpy as np, torch
from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor, Qwen3VLVideoProcessor
from noise import noise

out = {"stills": [], "videos": []}
for p, size, (h, w) in [(14, (3136, 12845056), (131, 257)), (16, (65536, 16777216), (131, 257)), (16, (4096, 1048576), (64, 96)), (14, (3136, 100352), (400, 300))]:
    ip = Qwen2VLImageProcessor(patch_size=p, size=dict(shortest_edge=size[0], longest_edge=size[1]), do_rescale=False, do_normalize=False)
    f = ip([torch.from_numpy(noise(h, w, 3)).permute(2, 0, 1)], return_tensors="pt", input_data_format="channels_first")
    v = f["pixel_values"].reshape(-1, 3, 2, p, p)
    assert torch.equal(v[:, :, 0], v[:, :, 1])
    b = v[:, :, 0].to(torch.uint8).contiguous().numpy()
    out["stills"].append(dict(patch=p, budget=size, source=[h, w], grid=f["image_grid_thw"][0].tolist(), crc32=zlib.crc32(b.tobytes())))
for cls, name, p, size, (n, h, w) in [(Qwen2VLVideoProcessor, "qwen2", 14, (3136, 12845056), (4, 61, 97)), (Qwen2VLVideoProcessor, "qwen2", 14, (3136, 12845056), (5, 61, 97)),
                                      (Qwen3VLVideoProcessor, "qwen3", 16, (4096, 25165824), (5, 61, 97)), (Qwen3VLVideoProcessor, "qwen3", 16, (4096, 25165824), (3, 20, 97)), (Qwen3VLVideoProcessor, "qwen3", 16, (4096, 65536), (8, 200, 300))]:
    vp = cls(patch_size=p, size=dict(shortest_edge=size[0], longest_edge=size[1]), do_rescale=False, do_normalize=False, do_sample_frames=False)
    f = vp([torch.from_numpy(noise(n, h, w, 3)).permute(0, 3, 1, 2).contiguous()], return_tensors="pt")
    b = f["pixel_values_videos"].to(torch.uint8).contiguous().numpy()
    out["videos"].append(dict(rule=name, patch=p, budget=size, source=[n, h, w], grid=f["video_grid_thw"][0].tolist(), crc32=zlib.crc32(b.tobytes())))
json.dump(out, open("patches.json", "w"), indent=0)
