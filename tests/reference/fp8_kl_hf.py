"""How much HF transformers itself loses by FP8 with blocks of 128: the divergence of its FP8 form from its bfloat16.

fp8_kl_hf.py MODEL_DIR QUESTIONS_JSONL [--limit 60] [--emulate]      needs torch, transformers 5.17, pillow
fp8_kl_hf.py MODEL_DIR --random-prompts 8 [--tokens 256] [--emulate]

Without --emulate it quantises through FineGrainedFP8Config. That needs an NVIDIA GPU of compute capability 8.9 or more,
the package accelerate, and kernels that transformers loads from the hub by the package `kernels`; where one of them is
missing, it says "not available" and why, and ends with status 3. With --emulate it does that arithmetic in torch, anywhere:
weights in blocks of 128 x 128 and activations in groups of 128, both rounded to e4m3 with scales of float32, products in
float32. Decoder layers only: the vision tower and lm_head stay bfloat16, as in the published FP8 checkpoints.

Both are fed with the questions' right answers, all of a prompt in one pass. The figures are those of `accuracy --along
given`: nats over the vocabulary at each of the answer's tokens, the one that ends it included. With --random-prompts they
are those of `accuracy kl`, at each token of prompts of random tokens (other ones than there).
"""
import argparse
import json
import os
import sys

import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2VLImageProcessor

BLOCK = 128
E4M3_MAX = 448.0
KEPT = ["visual", "lm_head"]


def cases(model_dir, config, path, limit):
    """Inputs and the number of answer tokens of each question."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    with open(f"{model_dir}/preprocessor_config.json") as file:
        settings = {k: v for k, v in json.load(file).items() if k not in ("image_processor_type", "processor_class")}
    processor = Qwen2VLImageProcessor(**settings)
    with open(path) as file:
        questions = [json.loads(line) for line in file][:limit]
    for question in questions:
        extra, text = {}, "<|im_start|>user\n"
        if question["images"]:
            images = [picture(os.path.dirname(path), entry) for entry in question["images"]]
            pixels = processor(images, return_tensors="pt")
            grids = pixels["image_grid_thw"]
            extra = {"pixel_values": pixels["pixel_values"].bfloat16(), "image_grid_thw": grids}
            for t, h, w in grids.tolist():
                text += "<|vision_start|>" + "<|image_pad|>" * (t * h * w // settings["merge_size"] ** 2) + "<|vision_end|>"
        prompt = tokenizer.encode(text + question["question"] + "<|im_end|>\n<|im_start|>assistant\n")
        answer = tokenizer.encode(question["answer"]) + [tokenizer.convert_tokens_to_ids("<|im_end|>")]
        ids = torch.tensor([prompt + answer[:-1]])
        types = (ids == config.image_token_id).int()
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": types, **extra}
        yield inputs, len(answer)


def random_cases(config, num_prompts, num_tokens):
    """Prompts of random tokens, which are looked at behind each of them."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(num_prompts):
        ids = torch.randint(config.text_config.vocab_size, (1, num_tokens), generator=generator)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": torch.zeros_like(ids)}
        yield inputs, num_tokens


def picture(folder, entry):
    if isinstance(entry, str):
        return Image.open(os.path.join(folder, entry)).convert("RGB")
    with open(os.path.join(folder, entry["file"]), "rb") as file:
        file.seek(entry["offset"])
        return Image.open(file).convert("RGB")


def run(model, inputs, num_tokens):
    with torch.inference_mode():
        out = model(**{k: v.to(model.device) for k, v in inputs.items()}, logits_to_keep=num_tokens)
    return out.logits[0].double().log_softmax(-1)


def rounded(x, dims):
    """e4m3 and back, with one scale for all that lies along `dims`."""
    scale = x.abs().amax(dims, keepdim=True) / E4M3_MAX
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (x / scale).to(torch.float8_e4m3fn).float() * scale


def linear_layers(model):
    """The decoder layers' products, with their names: what an FP8 checkpoint has quantised."""
    for name, module in model.named_modules():
        if type(module) is torch.nn.Linear and not any(part in name for part in KEPT):
            yield name, module


def emulate(model):
    """Puts what FP8Linear computes in the place of the decoder layers' products."""
    for _, module in linear_layers(model):
        n, k = module.weight.shape
        blocks = module.weight.data.float().reshape(n // BLOCK, BLOCK, k // BLOCK, BLOCK)
        weight = rounded(blocks, (1, 3)).reshape(n, k)

        def forward(x, weight=weight, bias=module.bias, k=k):
            groups = rounded(x.float().reshape(*x.shape[:-1], k // BLOCK, BLOCK), -1)
            y = F.linear(groups.reshape(x.shape), weight).to(x.dtype)
            return y if bias is None else y + bias

        module.forward = forward
    return model


def quantised(model_dir, device):
    """The model by FineGrainedFP8Config, or why there is none."""
    from transformers import FineGrainedFP8Config
    from transformers.integrations.finegrained_fp8 import load_finegrained_fp8_kernel

    if device != "cuda":
        raise RuntimeError("no NVIDIA GPU")
    if torch.cuda.get_device_capability() < (8, 9):
        raise RuntimeError("the GPU has no FP8: compute capability 8.9 is needed")
    load_finegrained_fp8_kernel()
    config = FineGrainedFP8Config(modules_to_not_convert=["model.visual", "lm_head"])
    return AutoModelForImageTextToText.from_pretrained(
        model_dir, dtype=torch.bfloat16, quantization_config=config, device_map="cuda"
    ).eval()


def add_cases(parser, limit):
    """The arguments that say what a model is fed with."""
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("questions", nargs="?")
    kind.add_argument("--random-prompts", type=int)
    parser.add_argument("--limit", type=int, default=limit)
    parser.add_argument("--tokens", type=int, default=256)


def chosen_cases(args, config):
    """What the arguments of `add_cases` say."""
    if args.questions is None:
        return random_cases(config, args.random_prompts, args.tokens)
    return cases(args.model_dir, config, args.questions, args.limit)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model_dir")
    add_cases(parser, 60)
    parser.add_argument("--emulate", action="store_true")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    load = lambda: AutoModelForImageTextToText.from_pretrained(args.model_dir, dtype=torch.bfloat16).to(device).eval()
    try:
        candidate = emulate(load()) if args.emulate else quantised(args.model_dir, device)
        reference = load()
        chosen = chosen_cases(args, reference.config)
        nats, same = [], 0
        for inputs, num_tokens in chosen:
            p, q = run(reference, inputs, num_tokens), run(candidate, inputs, num_tokens)
            nats.append((p.exp() * (p - q)).sum(-1).clamp(min=0).cpu())
            same += int((p.argmax(-1) == q.argmax(-1)).sum())
    except Exception as error:  # Kernels fail in many ways: at the hub, at compiling, at the first product.
        if args.emulate:
            raise
        print(f"not available: {type(error).__name__}: {error}")
        sys.exit(3)
    nats = torch.cat(nats).sort().values
    rank = lambda percent: nats[max(-(-len(nats) * percent // 100), 1) - 1].item()
    print(
        f"KL(bfloat16 || FP8) of {len(nats)} tokens, in nats: mean {nats.mean().item():.3e}, p50 {rank(50):.3e}, "
        f"p99 {rank(99):.3e}, max {rank(100):.3e}; likeliest token equal at {same} ({100 * same / len(nats):.2f} %)"
    )


if __name__ == "__main__":
    main()
