#!/usr/bin/env python3
"""A model folder between machines, in files that are small enough to be carried.

    planes.py split MODEL DIR [--bytes 2|3]     rounds every float32 of MODEL/model.safetensors to its upper bytes; writes DIR/planes.NN
    planes.py join DIR MODEL                    the same tensors as float32 again, with config.json and tokenizer.json

Two bytes are bfloat16; three keep 15 bits of the fraction, more than any packed format. Signs and exponents compress, fractions do not.
Needs numpy alone.
"""

import argparse
import json
import lzma
import pathlib
import struct

import numpy as np

PART_BYTES = 15 << 20
WEIGHTS = "model.safetensors"


FILES = ["config.json", "tokenizer.json"]


def split(model, folder, n_bytes):
    data = (model / WEIGHTS).read_bytes()
    (n_header,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + n_header])
    others = {name: tensor["dtype"] for name, tensor in header.items() if name != "__metadata__" and tensor["dtype"] != "F32"}
    assert not others, f"{model}: expected float32 tensors, got {others}"
    values = np.frombuffer(data, dtype="<u4", offset=8 + n_header).astype(np.uint64)
    dropped = 8 * (4 - n_bytes)
    kept = (values + (1 << (dropped - 1)) >> dropped).astype("<u4")
    # The sign moves to the end, so that the first plane is the exponent alone.
    kept = ((kept << 1) | (kept >> (8 * n_bytes - 1))) & ((1 << 8 * n_bytes) - 1)
    planes = [(kept >> (8 * plane) & 255).astype(np.uint8).tobytes() for plane in reversed(range(n_bytes))]
    packed = lzma.compress(planes[0], preset=1)
    files = {name: (model / name).read_text() for name in FILES}
    head = json.dumps({"bytes": n_bytes, "first": len(packed), "files": files}).encode()
    whole = struct.pack("<QQ", len(head), n_header) + head + data[8 : 8 + n_header] + packed + b"".join(planes[1:])
    folder.mkdir(parents=True, exist_ok=True)
    for part, start in enumerate(range(0, len(whole), PART_BYTES)):
        (folder / f"planes.{part:02}").write_bytes(whole[start : start + PART_BYTES])
    print(f"{len(values)} values in {len(whole)} bytes")


def join(folder, model):
    whole = b"".join(part.read_bytes() for part in sorted(folder.glob("planes.*")))
    n_head, n_header = struct.unpack("<QQ", whole[:16])
    head = json.loads(whole[16 : 16 + n_head])
    header, rest = whole[16 + n_head : 16 + n_head + n_header], whole[16 + n_head + n_header :]
    n_bytes, first = head["bytes"], lzma.decompress(rest[: head["first"]])
    planes = np.frombuffer(first + rest[head["first"] :], dtype=np.uint8).reshape(n_bytes, -1).astype("<u4")
    kept = sum(plane << (8 * (n_bytes - 1 - k)) for k, plane in enumerate(planes))
    kept = (kept >> 1) | ((kept & 1) << (8 * n_bytes - 1))
    values = (kept << (8 * (4 - n_bytes))).astype("<u4")
    model.mkdir(parents=True, exist_ok=True)
    (model / WEIGHTS).write_bytes(struct.pack("<Q", n_header) + header + values.tobytes())
    for name, text in head["files"].items():
        (model / name).write_text(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    splitting = commands.add_parser("split")
    splitting.add_argument("model", type=pathlib.Path)
    splitting.add_argument("folder", type=pathlib.Path)
    splitting.add_argument("--bytes", type=int, choices=(2, 3), default=3)
    joining = commands.add_parser("join")
    joining.add_argument("folder", type=pathlib.Path)
    joining.add_argument("model", type=pathlib.Path)
    args = parser.parse_args()
    if args.command == "split":
        split(args.model, args.folder, args.bytes)
    else:
        join(args.folder, args.model)


main()
