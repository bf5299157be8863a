#!/usr/bin/env python3
"""Puts llama.cpp's server through benchmark suites of multicoder, on one thread.

    python3 -m venv VENV && VENV/bin/pip install xllamacpp gguf tokenizers
    VENV/bin/python docs/peers.py --multicoder target/release/multicoder --bench BENCH --out peers --port 8080

Without `--model FILE.gguf` the server gets a model of Qwen2's shape with random weights, 2.4 million parameters and a tokenizer that has the
tokens of fill in the middle. It must score near zero: this tries the way to a server, not a model.

Packages: xllamacpp has llama.cpp and its server, compiled; gguf writes the model; tokenizers trains its tokenizer on grammars/samples/.
`OUT` gets random.gguf and, for each suite, SUITE.json, SUITE.jsonl (every answer) and SUITE.csv. `BENCH` is the folder of docs/suites.md;
without it only `samples` is run, which needs none.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import gguf
import numpy
import tokenizers
import xllamacpp

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Name of each special token, and the metadata that tells llama.cpp of it.
SPECIAL = {
    "<|endoftext|>": gguf.Keys.Tokenizer.EOS_ID,
    "<|fim_prefix|>": gguf.Keys.Tokenizer.FIM_PRE_ID,
    "<|fim_suffix|>": gguf.Keys.Tokenizer.FIM_SUF_ID,
    "<|fim_middle|>": gguf.Keys.Tokenizer.FIM_MID_ID,
    "<|repo_name|>": gguf.Keys.Tokenizer.FIM_REP_ID,
    "<|file_sep|>": gguf.Keys.Tokenizer.FIM_SEP_ID,
}
LAYERS, WIDTH, FEED_FORWARD, HEADS, KV_HEADS, CONTEXT = 4, 192, 512, 6, 2, 8192


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--multicoder", type=pathlib.Path, required=True, help="the binary")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--port", type=int, required=True, help="of the server, on the loopback interface")
    parser.add_argument("--bench", type=pathlib.Path, help="folder of the benchmarks, for santacoder-fim")
    parser.add_argument("--model", type=pathlib.Path, help="a GGUF file in place of random weights")
    parser.add_argument("--limit", type=int, default=50, help="questions of each language in each setting")
    return parser.parse_args()


def write_random_model(path):
    """A model of Qwen2's shape with tied embeddings, the same at every run."""
    samples = sorted(str(sample) for sample in (ROOT / "grammars/samples").iterdir() if sample.is_file())
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=list(SPECIAL),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train(samples, trainer)
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.token_to_id)
    merges = [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]

    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_name("random")
    writer.add_context_length(CONTEXT)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(vocabulary)
    kinds = [gguf.TokenType.CONTROL if token in SPECIAL else gguf.TokenType.NORMAL for token in vocabulary]
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_add_bos_token(False)
    for token, key in SPECIAL.items():
        writer.add_uint32(key, vocabulary.index(token))

    random = numpy.random.default_rng(1)
    kv_width = WIDTH // HEADS * KV_HEADS
    matrices = {
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (kv_width, WIDTH),
        "attn_v": (kv_width, WIDTH),
        "attn_output": (WIDTH, WIDTH),
        "ffn_gate": (FEED_FORWARD, WIDTH),
        "ffn_up": (FEED_FORWARD, WIDTH),
        "ffn_down": (WIDTH, FEED_FORWARD),
    }

    def add(name, shape):
        # Ten times the usual spread, so that the likeliest token is not a matter of rounding.
        writer.add_tensor(name, random.normal(0.0, 0.2, shape).astype(numpy.float32))

    add("token_embd.weight", (len(vocabulary), WIDTH))
    writer.add_tensor("output_norm.weight", numpy.ones(WIDTH, numpy.float32))
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", numpy.ones(WIDTH, numpy.float32))
        for name, shape in matrices.items():
            add(f"blk.{layer}.{name}.weight", shape)
            if name in ("attn_q", "attn_k", "attn_v"):
                add(f"blk.{layer}.{name}.bias", shape[:1])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def start_server(model, port):
    """llama.cpp's server, on threads of this process: it ends with it."""
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_parallel = 1
    params.n_ctx = CONTEXT
    # Of the fragments of /infill llama.cpp keeps what leaves room for twice as many tokens; without this it keeps a few too many and answers 400.
    params.n_predict = 64
    params.verbosity = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(params)


def main():
    arguments = parse_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    model = arguments.model
    if model is None:
        model = arguments.out / "random.gguf"
        write_random_model(model)
    server = start_server(model, arguments.port)
    suites = {"samples": ROOT / "grammars"}
    if arguments.bench:
        suites["santacoder-fim"] = arguments.bench
    for suite, bench in suites.items():
        out = arguments.out / suite
        command = [arguments.multicoder, "eval", suite, "--model", server.listening_address, "--bench", bench, "--limit", str(arguments.limit)]
        command += ["--answers", f"{out}.jsonl", "--json", f"{out}.json", "--csv", f"{out}.csv"]
        if subprocess.run(command).returncode:
            sys.exit(f"{suite}: no result")


if __name__ == "__main__":
    main()
