"""Writes how far HF transformers in bfloat16 is from its own float32 on the committed reference answers.

bf16_noise.py REPOSITORY      needs torch, transformers 5.17, pillow, safetensors; runs on a CPU

For each small checkpoint of tests/fixtures/goldens with committed arrays (weights: the trained `tiny`, else the formula of
manifest.json) and each of its cases, passes over the prompt and the forced ids in bfloat16: one as it is, and REALISATIONS in
which attention's outputs are rounded in other ways, each element multiplied by 1 + u, |u| <= 0.7 * 2^-8: one in eleven comes out
a step away, which has the variance of one more rounding. Another order of sums does as much, and the errors' tails are long: a
single row of logits may be ten times further out in one pass than in another.

Writes bf16_noise.json beside the cases: per case the root mean square, over the passes, of the relative L2 errors of `logits`
and of the twelve `forced_logits` against the float32 arrays; `worst`, the largest of either; and the largest difference of a
logit in the pass as it is.
"""
import json
import os
import sys

import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText, Qwen2VLImageProcessor

from hf_reference import error, fill

FAMILIES = ["tiny", "qwen3_vl_tied", "qwen2_5_vl", "qwen2_vl"]
REALISATIONS = 24


class OtherRounding:
    """Rounds what enters each of the decoder's output projections in another way for each seed; as it is for seed 0."""

    def __init__(self, model):
        self.seed, self.generator = 0, torch.Generator()
        for name, module in model.named_modules():
            if name.endswith("self_attn.o_proj"):
                module.register_forward_pre_hook(self.round)

    def start(self, seed):
        self.seed = seed
        self.generator.manual_seed(seed)

    def round(self, module, args):
        if self.seed == 0:
            return args
        u = (torch.rand(args[0].shape, generator=self.generator) * 2 - 1) * 0.7 * 2**-8
        return ((args[0].float() * (1 + u)).bfloat16(),)


def load(fixtures, family):
    if family == "tiny":
        return AutoModelForImageTextToText.from_pretrained(f"{fixtures}/tiny", dtype=torch.bfloat16).eval()
    folder = f"{fixtures}/goldens/{family}"
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16).eval()
    with open(f"{folder}/manifest.json") as file:
        manifest = json.load(file)
    # The formula starts from a tensor's name as it is written, which is an older one for some families.
    written = {canonical(tensor["name"]): tensor["name"] for tensor in manifest["tensors"]}
    for name, parameter in model.named_parameters():
        fill(parameter, written[name], manifest["seed"], bool(config.tie_word_embeddings))
    return model


def canonical(name):
    """A tensor's name as transformers 5 has it."""
    if name.startswith("visual."):
        return "model." + name
    if name.startswith("model.") and not name.startswith(("model.visual.", "model.language_model.")):
        return "model.language_model." + name.removeprefix("model.")
    return name


def main():
    fixtures = os.path.join(sys.argv[1], "tests/fixtures")
    for family in FAMILIES:
        folder = f"{fixtures}/goldens/{family}"
        settings_folder = f"{fixtures}/tiny" if family == "tiny" else folder
        with open(f"{settings_folder}/preprocessor_config.json") as file:
            settings = {k: v for k, v in json.load(file).items() if k != "image_processor_type"}
        processor, model = Qwen2VLImageProcessor(**settings), load(fixtures, family)
        rounding = OtherRounding(model)
        arrays, noise = load_file(f"{folder}/cases.safetensors"), {}
        with open(f"{folder}/cases.json") as file:
            cases = json.load(file)
        for case in cases:
            name, extra = case["name"], {}
            if case["images"]:
                images = [Image.open(f"{fixtures}/goldens/images/{image}").convert("RGB") for image in case["images"]]
                pixels = processor(images, return_tensors="pt")
                extra = {
                    "pixel_values": pixels["pixel_values"].bfloat16(),
                    "image_grid_thw": pixels["image_grid_thw"],
                }
            ids = torch.tensor([case["prompt_ids"] + case["forced_ids"]])
            types = (ids == model.config.image_token_id).int()
            types[:, len(case["prompt_ids"]) :] = 0
            expected = torch.cat([arrays[f"{name}.logits"][None], arrays[f"{name}.forced_logits"]])
            errors, max_difference = [], 0.0
            for seed in range(REALISATIONS + 1):
                rounding.start(seed)
                with torch.inference_mode():
                    out = model(input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=types, **extra)
                rows = out.logits[0, -len(case["forced_ids"]) - 1 :].float()
                errors.append((error(rows[:1], expected[:1]), error(rows[1:], expected[1:])))
                if seed == 0:
                    max_difference = float((rows - expected).abs().max())
            rms = [(sum(e[i] ** 2 for e in errors) / len(errors)) ** 0.5 for i in range(2)]
            noise[name] = {
                "logits": rms[0],
                "forced_logits": rms[1],
                "worst": max(map(max, errors)),
                "max_difference": max_difference,
            }
        with open(f"{folder}/bf16_noise.json", "w") as file:
            json.dump(noise, file, indent=1)
            file.write("\n")
        print(family, {key: max(case[key] for case in noise.values()) for key in next(iter(noise.values()))}, flush=True)


if __name__ == "__main__":
    main()
