#!/usr/bin/env python3
"""A data set of a given size, to measure the memory of `multicoder corpus build` by: rows of the source files below a folder, again and
again, each time with other names in them.

    docs/many-rows.py FOLDER OUT.jsonl GIGABYTES
    multicoder corpus build --dataset big=OUT.jsonl --out SHARDS --train-mb 1000000 --json
"""
import json
import os
import sys

ENDINGS = (".py", ".java", ".go", ".js", ".ts", ".c", ".cpp", ".rs", ".cs", ".php", ".rb", ".hs", ".scala", ".lua")


def sources(folder):
    for here, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(here, name)
            if name.endswith(ENDINGS) and not os.path.islink(path) and os.path.getsize(path) < 1_000_000:
                with open(path, encoding="utf-8", errors="ignore") as file:
                    yield os.path.relpath(path, folder), file.read()


def main():
    folder, out, n_bytes = sys.argv[1], sys.argv[2], float(sys.argv[3]) * 1e9
    written, copy = 0, 0
    with open(out, "w", encoding="utf-8") as file:
        while True:
            for path, text in sources(folder):
                text = text.replace("value", f"value{copy}").replace("name", f"name{copy}").replace("self", f"self{copy}")
                row = {"content": text, "path": path, "repo_name": f"owner{copy}/{path.split('/')[1]}"}
                written += file.write(json.dumps(row) + "\n")
                if written >= n_bytes:
                    return
            if written == 0:
                sys.exit(f"{folder}: no source files below")
            copy += 1


main()
