"""Writes the scale of each decoder layer's input, for FP8 checkpoints whose activations have fixed scales.

input_scales.py MODEL_DIR QUESTIONS_JSONL --out OUT_JSON [--limit 120]      needs torch, transformers 5.17, pillow
input_scales.py MODEL_DIR --random-prompts 8 [--tokens 256] --out OUT_JSON

It runs the bfloat16 model over the questions and their right answers, or over random tokens, and takes the largest magnitude
that each linear layer is given, divided by e4m3's largest number. OUT_JSON names layers as model.safetensors does; the example
`fp8_checkpoint` of foveal-testkit reads it. Questions come from tiny_questions.py, with another seed than those that the
checkpoint is judged by.
"""
import argparse
import json

import torch
from transformers import AutoModelForImageTextToText

from fp8_kl_hf import E4M3_MAX, add_cases, chosen_cases, linear_layers, run


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model_dir")
    add_cases(parser, 120)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForImageTextToText.from_pretrained(args.model_dir, dtype=torch.bfloat16).to(device).eval()
    chosen, largest = chosen_cases(args, model.config), {}

    def record(name):
        def hook(_module, inputs):
            largest[name] = max(largest.get(name, 0.0), inputs[0].abs().max().item())

        return hook

    for name, module in linear_layers(model):
        module.register_forward_pre_hook(record(name))
    for inputs, num_tokens in chosen:
        run(model, inputs, num_tokens)
    with open(args.out, "w") as file:
        json.dump({name: value / E4M3_MAX for name, value in largest.items()}, file, indent=1)
    print(f"{len(largest)} layers, scales of {min(largest.values()) / E4M3_MAX:.3g} to {max(largest.values()) / E4M3_MAX:.3g}")


if __name__ == "__main__":
    main()
