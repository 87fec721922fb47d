"""Writes smart_resize.json: HF's sizes, or null where it raises."""
import json
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as still
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as video

BUDGETS = [(28, 3136, 12845056), (28, 56 * 56, 28 * 28 * 1280), (32, 65536, 16777216), (32, 4096, 1048576)]
SIDES = [1, 2, 13, 14, 15, 27, 28, 29, 41, 42, 43, 56, 70, 98, 126, 199, 200, 201, 336, 427, 512, 640, 1000, 1080, 1920, 3024, 4032, 8000]


def call(f, **kw):
    try:
        return list(f(**kw))
    except ValueError:
        return None


stills = [[h, w, f, lo, hi, call(still, height=h, width=w, factor=f, min_pixels=lo, max_pixels=hi)]
          for f, lo, hi in BUDGETS for h in SIDES for w in SIDES[::2]]
videos = [[n, h, w, 2, f, lo, hi, call(video, num_frames=n, height=h, width=w, temporal_factor=2, factor=f, min_pixels=lo, max_pixels=hi)]
          for f, lo, hi in [(32, 4096, 25165824), (32, 128 * 32 * 32, 32 * 32 * 768)] for n in [1, 2, 3, 5, 8, 64, 301] for h in SIDES[::3] for w in SIDES[1::3]]
json.dump({"stills": stills, "videos": videos}, open("smart_resize.json", "w"), separators=(",", ":"))
