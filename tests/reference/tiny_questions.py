"""Writes questions about synthetic pictures, with their answers, for the benchmark program `accuracy`.

tiny_questions.py --train TRAIN_PY --out DIR [--count 3000] [--seed 20261125] [--packed]      needs numpy, pillow

TRAIN_PY is the script that trained the `tiny` model. Its `sample(rng, w, h)` makes a question; its `main` isn't run, and
what only that needs (torch) need not be installed. Sizes are those of its held-out evaluation: 96 to 288 pixels in steps
of 32. The same seed gives the same questions, and with the same versions of numpy and pillow the same bytes.

DIR/questions.jsonl has one line for each: `images`, `question`, `answer`. An image is a file's name (DIR/0000_0.png) or,
with --packed, `{"file": "images.bin", "offset": .., "len_bytes": ..}`: all PNG files one behind the other in one file.
"""
import argparse
import io
import json
import os
import sys
import types

import numpy as np

PACK = "images.bin"


def stub(name):
    """A module that has whatever is asked of it, as empty classes."""
    module = types.ModuleType(name)
    module.__getattr__ = lambda attribute: type(attribute, (), {})
    return module


def load_train(path):
    """The functions of the training script."""
    missing = [name for name in ("torch", "torch.utils", "torch.utils.data") if name not in sys.modules]
    for name in missing:
        sys.modules[name] = stub(name)
    sys.modules["torch"].utils, sys.modules["torch.utils"].data = sys.modules["torch.utils"], sys.modules["torch.utils.data"]
    # It reads its output folder from the command line when it is loaded.
    argv, sys.argv = sys.argv, [path, os.devnull]
    module = types.ModuleType("train")
    try:
        with open(path) as file:
            exec(compile(file.read(), path, "exec"), module.__dict__)
    finally:
        sys.argv = argv
        for name in missing:
            del sys.modules[name]
    return module


class Folder:
    """One file for each picture."""

    def __init__(self, out):
        self.out = out
        self.len_bytes = 0

    def add(self, name, png):
        with open(os.path.join(self.out, name), "wb") as file:
            file.write(png)
        self.len_bytes += len(png)
        return name


class Pack:
    """All pictures in one file."""

    def __init__(self, out):
        self.file = open(os.path.join(out, PACK), "wb")
        self.len_bytes = 0

    def add(self, _name, png):
        self.file.write(png)
        entry = {"file": PACK, "offset": self.len_bytes, "len_bytes": len(png)}
        self.len_bytes += len(png)
        return entry


def png(image):
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--train", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=20261125)
    parser.add_argument("--packed", action="store_true")
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    train, rng = load_train(args.train), np.random.default_rng(args.seed)
    pictures, num_pictures = (Pack if args.packed else Folder)(args.out), 0
    with open(os.path.join(args.out, "questions.jsonl"), "w") as file:
        for i in range(args.count):
            w, h = (int(rng.integers(3, 10)) * 32 for _ in range(2))
            images, question, answer = train.sample(rng, w, h)
            entries = [pictures.add(f"{i:04}_{k}.png", png(image)) for k, image in enumerate(images)]
            num_pictures += len(entries)
            file.write(json.dumps({"images": entries, "question": question, "answer": answer}) + "\n")
    print(f"{args.count} questions, {num_pictures} pictures, {pictures.len_bytes / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
