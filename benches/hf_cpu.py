"""Times HF transformers on the CPU for `cargo xtask bench`: one JSON line with seconds of prefill and of each decode step.

hf_cpu.py MODEL_DIR PROMPT_TOKENS DECODE_TOKENS THREADS      needs torch and transformers

The prompt is random token ids: with random weights only the shapes matter. bf16, attention by SDPA, greedy decoding
through the cache, as `generate` would run it but without its own overhead.
"""
import json
import sys
import time

import torch
from transformers import Qwen3VLForConditionalGeneration

model_dir, prompt_tokens, decode_tokens, threads = sys.argv[1], *map(int, sys.argv[2:5])
torch.set_num_threads(threads)
torch.manual_seed(0)
model = Qwen3VLForConditionalGeneration.from_pretrained(model_dir, dtype=torch.bfloat16, attn_implementation="sdpa").eval()


def run():
    ids = torch.randint(0, 1000, (1, prompt_tokens))
    with torch.inference_mode():
        start = time.perf_counter()
        out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        next_id = out.logits[:, -1:].argmax(-1)
        prefill = time.perf_counter() - start
        cache, steps = out.past_key_values, []
        for _ in range(decode_tokens):
            start = time.perf_counter()
            out = model(input_ids=next_id, past_key_values=cache, use_cache=True)
            next_id = out.logits[:, -1:].argmax(-1)
            steps.append(time.perf_counter() - start)
    return prefill, steps


run()  # warm-up: oneDNN packs weights and picks kernels on first use
prefill, steps = run()
steps.sort()
print(json.dumps({"prefill_s": prefill, "decode_step_s": steps[len(steps) // 2]}))
