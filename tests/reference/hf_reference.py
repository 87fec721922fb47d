"""Writes a reference file for `foveal verify`: what HF transformers says about some prompts, in float32 and in bfloat16.

hf_reference.py MODEL_DIR OUT_FILE [--steps 32] [--dummy-seed SEED] [--device cuda] [--image FILE]...

needs torch, torchvision, transformers 5.17, pillow, safetensors

MODEL_DIR is a model folder as the hub has it. With --dummy-seed its weights are not read: they are made by the formula of
`foveal run --load-format dummy` (see `fill`), so that a model of full size can be compared without a download.

OUT_FILE is a safetensors file. Its metadata holds `foveal_reference`, a JSON object: `version` 1, the model's name, the
libraries' versions, and `cases`, each with `name`, `text` (the user's words after the pictures), `num_images`, and
`bf16_error`, `bf16_forced_error`: the relative L2 error of transformers' own bfloat16 logits against its float32 ones, at
the prompt's last token and over all forced steps, and `bf16_max_error`, the largest difference of a logit. Tensors per case: `<name>.image.<i>` (u8, the picture's file), `<name>.
prompt_ids` (i32, expanded), `<name>.forced_ids` (i32, fed one by one after the prompt, whatever the model would say),
`<name>.logits` (f32, [1 + steps, vocab_size], after the prompt and after each forced id).
"""
import argparse
import io
import json

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

GOLDEN_GAMMA = 0x9E3779B97F4A7C15
CHUNK = 1 << 26


def signed(x):
    """A 64-bit pattern as the integer that torch has for it."""
    return x - (1 << 64) if x >= 1 << 63 else x


def logical_shift(z, bits):
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def offset_and_scale(name, shape, is_tied):
    """The rule of the small reference checkpoints (tests/fixtures/goldens/make.py)."""
    fan_in = float(np.prod(shape[1:])) or 1.0
    if len(shape) <= 1:
        offset, scale = (1.0, 0.25) if name.endswith("weight") else (0.0, 0.2)
    elif "embed_tokens" in name:
        offset, scale = 0.0, 0.2 if is_tied else 1.7
    elif "pos_embed" in name:
        offset, scale = 0.0, 0.5
    else:
        offset, scale = 0.0, 3**0.5 * (1.6 if "lm_head" in name else 1.0) / max(fan_in, 1.0) ** 0.5
    return offset, float(np.float32(scale))


def fill(parameter, name, seed, is_tied):
    """value[i] = bf16(f32(offset + scale * u)), u = (z >> 40) / 2^23 - 1, z = output i + 1 of splitmix64 from the state
    fnv1a64("<seed>:<name>")."""
    state = 0xCBF29CE484222325
    for byte in f"{seed}:{name}".encode():
        state = ((state ^ byte) * 0x100000001B3) & (2**64 - 1)
    offset, scale = offset_and_scale(name, parameter.shape, is_tied)
    flat = parameter.data.view(-1)
    for start in range(0, flat.numel(), CHUNK):
        i = torch.arange(start + 1, min(start + CHUNK, flat.numel()) + 1, device=flat.device, dtype=torch.int64)
        z = signed(state) + i * signed(GOLDEN_GAMMA)
        z = (z ^ logical_shift(z, 30)) * signed(0xBF58476D1CE4E5B9)
        z = (z ^ logical_shift(z, 27)) * signed(0x94D049BB133111EB)
        z = z ^ logical_shift(z, 31)
        u = logical_shift(z, 40).double() / 2.0**23 - 1.0
        flat[start : start + i.numel()] = (offset + scale * u).float().bfloat16().to(flat.dtype)


def load(model_dir, seed, device):
    """The model in float32."""
    if seed is None:
        model = AutoModelForImageTextToText.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="sdpa")
        return model.to(device).eval()
    config = AutoConfig.from_pretrained(model_dir)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    model = model.eval()
    is_tied = bool(getattr(config, "tie_word_embeddings", False))
    for name, parameter in model.named_parameters():
        fill(parameter, name, seed, is_tied)
    return model


def png(picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def pictures(files):
    """The given ones, or drawings of several sizes."""
    if files:
        return [open(file, "rb").read() for file in files]
    rng = np.random.default_rng(7)
    made = []
    for width, height in [(512, 512), (300, 200), (224, 448), (640, 360)]:
        y, x = np.mgrid[0:height, 0:width]
        waves = [128 + 100 * np.sin(x / (9 + 7 * c) + y / (13 + 3 * c) + rng.uniform(0, 6)) for c in range(3)]
        made.append(png(Image.fromarray(np.stack(waves, -1).clip(0, 255).astype(np.uint8))))
    return made


def cases(files):
    images = pictures(files)
    words = "The quick brown fox jumps over the lazy dog. "
    return [
        ("text", [], words * 40 + "What was that about?"),
        ("one_image", images[:1], "Describe the picture."),
        ("four_images", (images * 4)[:4], "What do the pictures have in common?"),
    ]


def run(model, ids, inputs, forced):
    """Logits after the prompt and after each forced id, by one pass over all of them."""
    whole = torch.cat([ids, forced[None].to(ids)], 1)
    extra = {k: v for k, v in inputs.items() if k in ("pixel_values", "image_grid_thw")}
    if "pixel_values" in extra:
        extra["pixel_values"] = extra["pixel_values"].to(model.dtype)
    if "mm_token_type_ids" in inputs:
        types = inputs["mm_token_type_ids"]
        extra["mm_token_type_ids"] = torch.cat([types, torch.zeros(1, len(forced)).to(types)], 1)
    with torch.inference_mode():
        out = model(input_ids=whole, attention_mask=torch.ones_like(whole), logits_to_keep=len(forced) + 1, **extra)
    return out.logits[0].float()


def error(a, b):
    return float((a - b).double().norm() / b.double().norm())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model_dir")
    parser.add_argument("out")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--dummy-seed", type=int)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--image", action="append", default=[])
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False

    processor = AutoProcessor.from_pretrained(args.model_dir)
    model = load(args.model_dir, args.dummy_seed, args.device)
    arrays, described, prepared = {}, [], []
    rng = np.random.default_rng(11)
    for name, images, text in cases(args.image):
        content = [{"type": "image", "image": Image.open(io.BytesIO(image)).convert("RGB")} for image in images]
        messages = [{"role": "user", "content": content + [{"type": "text", "text": text}]}]
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(args.device)
        ids = inputs["input_ids"]
        forced = torch.from_numpy(rng.integers(0, 990, args.steps))
        logits = run(model, ids, inputs, forced)
        for i, image in enumerate(images):
            arrays[f"{name}.image.{i}"] = torch.frombuffer(bytearray(image), dtype=torch.uint8)
        arrays[f"{name}.prompt_ids"] = ids[0].int().cpu()
        arrays[f"{name}.forced_ids"] = forced.int()
        arrays[f"{name}.logits"] = logits.cpu().contiguous()
        described.append({"name": name, "text": text, "num_images": len(images)})
        prepared.append((ids, inputs, forced))
        print(f"{name}: {ids.shape[1]} tokens, float32 done", flush=True)
    model = model.bfloat16()
    for case, (ids, inputs, forced) in zip(described, prepared):
        reference = arrays[f"{case['name']}.logits"]
        logits = run(model, ids, inputs, forced).cpu()
        case["bf16_error"] = error(logits[0], reference[0])
        case["bf16_forced_error"] = error(logits[1:], reference[1:])
        case["bf16_max_error"] = float((logits - reference).abs().max())
        print(f"{case['name']}: bfloat16 is {case['bf16_error']:.2e} and {case['bf16_forced_error']:.2e} off", flush=True)
    reference = {
        "version": 1,
        "model": type(model).__name__,
        "dummy_seed": args.dummy_seed,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "cases": described,
    }
    save_file(arrays, args.out, metadata={"foveal_reference": json.dumps(reference)})


if __name__ == "__main__":
    main()
