"""llama.cpp, measured by `multicoder-lsp bench`: a request a line on standard input, its answer a line on standard output, both JSON."""

import argparse
import json
import os
import sys
import time

import xllamacpp


def start_server(arguments):
    params = xllamacpp.CommonParams()
    params.model.path = arguments.model
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = arguments.context
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.verbosity = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = arguments.threads
    return xllamacpp.Server(params)


def answer(server, request):
    """Continues `ids` greedily by `n_new` tokens; the times are llama.cpp's own, but for that of the whole request."""
    start = time.perf_counter()
    response = server.handle_completions(
        {
            "prompt": request["ids"],
            "max_tokens": request["n_new"],
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": request["is_cached"],
            # Ids are told with probabilities alone.
            **({"logprobs": 1} if request["wants_ids"] else {}),
        }
    )
    elapsed_s = time.perf_counter() - start
    if "timings" not in response:
        sys.exit(f"llama.cpp answered {response}")
    timings = response["timings"]
    logprobs = response["choices"][0].get("logprobs") or {"content": []}
    return {
        "ids": [token["id"] for token in logprobs["content"]],
        "prompt_tokens": timings["prompt_n"],
        "prompt_s": timings["prompt_ms"] / 1e3,
        "written_tokens": timings["predicted_n"],
        "written_s": timings["predicted_ms"] / 1e3,
        "elapsed_s": elapsed_s,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--context", type=int, required=True)
    arguments = parser.parse_args()
    # What llama.cpp prints goes to standard error.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    server = start_server(arguments)
    print(json.dumps({"version": xllamacpp.__version__}), file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(server, json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    main()
