"""timestamps.py TINY_FOLDER writes timestamps.json: ids of HF's video prompts, frames of 96 x 64 pixels."""
import json, sys
import torch
from transformers import (PreTrainedTokenizerFast, Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLProcessor,
                          Qwen2VLVideoProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor)

tok = PreTrainedTokenizerFast(tokenizer_file=f"{sys.argv[1]}/tokenizer.json")
out = []
for family, cls, video, patch, size in [("tiny", Qwen3VLProcessor, Qwen3VLVideoProcessor, 16, (4096, 1048576)),
                                        ("qwen2_5_vl", Qwen2_5_VLProcessor, Qwen2VLVideoProcessor, 14, (3136, 401408)),
                                        ("qwen2_vl", Qwen2VLProcessor, Qwen2VLVideoProcessor, 14, (3136, 401408))]:
    size = dict(shortest_edge=size[0], longest_edge=size[1])
    p = cls(image_processor=Qwen2VLImageProcessor(patch_size=patch, size=dict(size)), tokenizer=tok, video_processor=video(patch_size=patch, size=dict(size)))
    for fps, total, indices in [(10.0, 25, [0, 5, 10, 15, 20]), (29.97, 300, [0, 30, 60, 90]), (2.0, 4, [0, 1, 2, 3]), (4.0, 100, [0, 1, 40, 41, 98, 99]), (24.0, 2000, [7, 1999, 1999])]:
        v = torch.zeros(len(indices), 3, 64, 96, dtype=torch.uint8)
        text = "<|im_start|>user\na<|vision_start|><|video_pad|><|vision_end|>b<|im_end|>\n<|im_start|>assistant\n"
        f = p(text=[text], videos=[v], video_metadata=[dict(fps=fps, frames_indices=list(indices), total_num_frames=total)], do_sample_frames=False, return_tensors="pt")
        out.append(dict(family=family, fps=fps, total_num_frames=total, frame_indices=indices, ids=f["input_ids"][0].tolist()))
json.dump(out, open("timestamps.json", "w"), separators=(",", ":"))
