"""The training step of the same decoder in PyTorch, to be measured beside ours.

Reads a model configuration (the `model` section of a run configuration, as JSON) and prints one line of JSON: seconds of every timed
step, first and last loss of the first batch, peak memory. Ids are random, a few batches in turn: speed only. `multicoder bench train
--against torch` starts it; by hand: `python torch_train.py --model model.json --batch 8 --sequence 256 --mode compile --dtype bf16`.
"""

import argparse
import json
import os
import resource
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

# Batches that come in turn, as ours do.
BATCHES = 3


class FeedForward(nn.Module):
    def __init__(self, config, d_ff):
        super().__init__()
        d = config["d_model"]
        self.is_gated = config["activation"] == "swiglu"
        self.up = nn.Linear(d, d_ff * (2 if self.is_gated else 1), bias=False)
        self.down = nn.Linear(d_ff, d, bias=False)

    def forward(self, x):
        h = self.up(x)
        if self.is_gated:
            gate, up = h.chunk(2, dim=-1)
            return self.down(F.silu(gate) * up)
        return self.down(relu2(h))


class LanguageMoe(nn.Module):
    """One expert for each language, chosen by the row of the batch; an optional shared one.

    Row i has language i % experts, and rows come sorted by language, as they do to our experts: each multiplies its rows at once and
    none is moved.
    """

    def __init__(self, config, moe):
        super().__init__()
        self.experts = nn.ModuleList(FeedForward(config, moe["d_ff_expert"]) for _ in range(moe["n_experts"]))
        self.shared = FeedForward(config, moe["d_ff_shared"]) if moe["d_ff_shared"] else None

    def forward(self, x):
        n_rows = [len(range(e, x.shape[0], len(self.experts))) for e in range(len(self.experts))]
        pieces = zip(self.experts, x.split(n_rows))
        y = torch.cat([expert(piece) for expert, piece in pieces if piece.shape[0]])
        return y if self.shared is None else y + self.shared(x)


def relu2(h):
    """relu(h) squared, as a product: autocast computes powers in float32."""
    h = F.relu(h)
    return h * h


def grouped_mm(x, w, ends):
    """Rows of x up to each end times the matrix of its expert; it became public in PyTorch 2.10."""
    return getattr(F, "grouped_mm", torch._grouped_mm)(x, w, offs=ends)


class TokenMoe(nn.Module):
    """Dropless top-k experts for each token, one grouped_mm a projection."""

    def __init__(self, config, moe):
        super().__init__()
        d, f, e = config["d_model"], moe["d_ff_expert"], moe["n_experts"]
        self.is_gated = config["activation"] == "swiglu"
        self.top_k = moe["router"].get("top_k", 1)
        self.router = nn.Linear(d, e, bias=False)
        self.w_up = nn.Parameter(torch.randn(e, d, f * (2 if self.is_gated else 1)) / d**0.5)
        self.w_down = nn.Parameter(torch.randn(e, f, d) / f**0.5)
        self.shared = FeedForward(config, moe["d_ff_shared"]) if moe["d_ff_shared"] else None

    def act(self, h):
        if self.is_gated:
            gate, up = h.chunk(2, dim=-1)
            return F.silu(gate) * up
        return relu2(h)

    def forward(self, x):
        shape, n_experts = x.shape, self.w_up.shape[0]
        x = x.reshape(-1, shape[-1])
        probs = self.router(x).float().softmax(-1)
        weight, expert = probs.topk(self.top_k, dim=-1)
        order = expert.flatten().argsort(stable=True)
        token = order // self.top_k
        # Of a fixed shape, unlike bincount: the compiler keeps one graph.
        counts = (expert.flatten()[:, None] == torch.arange(n_experts, device=x.device)).sum(0)
        ends = counts.cumsum(0).to(torch.int32)
        # Autocast does not know grouped_mm.
        dtype = torch.bfloat16 if torch.is_autocast_enabled(x.device.type) else x.dtype
        h = self.act(grouped_mm(x[token].to(dtype), self.w_up.to(dtype), ends))
        y = grouped_mm(h.to(dtype), self.w_down.to(dtype), ends)
        y = y * weight.flatten()[order].unsqueeze(1).to(y.dtype)
        if self.top_k == 1:
            # Each token comes once: a permutation back, without sums.
            out = torch.empty_like(y).index_copy(0, token, y).reshape(shape)
        else:
            out = torch.zeros_like(x, dtype=y.dtype).index_add(0, token, y).reshape(shape)
        return out if self.shared is None else out + self.shared(x.reshape(shape))


def is_moe_layer(config, layer):
    moe = config.get("moe")
    if not moe:
        return False
    (kind, value), = moe["layers"].items()
    if kind == "every_n":
        return (layer + 1) % value == 0
    return layer + value >= config["n_layers"] if kind == "last_k" else layer in value


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        d, k = config["d_model"], config["d_head"]
        self.h, self.g, self.k, self.eps = config["n_heads"], config["n_kv_heads"], k, config["norm_eps"]
        self.norm1 = nn.Parameter(torch.ones(d))
        self.norm2 = nn.Parameter(torch.ones(d))
        self.qkv = nn.Linear(d, (self.h + 2 * self.g) * k, bias=config["qkv_bias"])
        self.out = nn.Linear(self.h * k, d, bias=False)
        self.q_norm = nn.Parameter(torch.ones(k)) if config["qk_norm"] else None
        self.k_norm = nn.Parameter(torch.ones(k)) if config["qk_norm"] else None
        has_values = layer in config["value_embedding_layers"]
        self.values = nn.Embedding(config["vocab_size"], self.g * k) if has_values else None
        if not is_moe_layer(config, layer):
            self.ffn = FeedForward(config, config["d_ff"])
        elif config["moe"]["router"]["kind"] == "token":
            self.ffn = TokenMoe(config, config["moe"])
        else:
            self.ffn = LanguageMoe(config, config["moe"])

    def forward(self, x, ids, cos, sin):
        b, l, d = x.shape
        qkv = self.qkv(F.rms_norm(x, (d,), self.norm1, self.eps)).view(b, l, -1, self.k)
        q, k, v = qkv.split([self.h, self.g, self.g], dim=2)
        if self.values is not None:
            v = v + self.values(ids).view(b, l, self.g, self.k).to(v.dtype)
        if self.q_norm is not None:
            q = F.rms_norm(q, (self.k,), self.q_norm, self.eps)
            k = F.rms_norm(k, (self.k,), self.k_norm, self.eps)
        q, k = (rotate(t, cos, sin).transpose(1, 2).to(v.dtype) for t in (q, k))
        grouped = {"enable_gqa": True} if self.g != self.h else {}
        a = F.scaled_dot_product_attention(q, k, v.transpose(1, 2), is_causal=True, **grouped)
        x = x + self.out(a.transpose(1, 2).reshape(b, l, -1))
        return x + self.ffn(F.rms_norm(x, (d,), self.norm2, self.eps))


def rotate(x, cos, sin):
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1)


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        v, d = config["vocab_size"], config["d_model"]
        self.embed = nn.Embedding(v, d)
        nn.init.normal_(self.embed.weight, std=d**-0.5)
        buckets = config["bigram_buckets"]
        self.bigrams = nn.Embedding(buckets, d) if buckets else None
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config["n_layers"]))
        self.norm = nn.Parameter(torch.ones(d))
        self.head = None if config["tie_embeddings"] else nn.Parameter(torch.randn(v, d) / d**0.5)
        half = config["d_head"] // 2
        angle = torch.outer(torch.arange(config["context_tokens"]), config["rope_theta"] ** (-torch.arange(half) / half))
        self.register_buffer("cos", angle.cos()[:, None], persistent=False)
        self.register_buffer("sin", angle.sin()[:, None], persistent=False)

        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                depth = (2 * config["n_layers"]) ** -0.5 if name.endswith(("down", "out")) else 1.0
                nn.init.normal_(module.weight, std=depth * module.in_features**-0.5)

    def forward(self, ids, targets):
        x = self.embed(ids)
        if self.bigrams is not None:
            before = F.pad(ids, (1, 0))[:, :-1]
            x = x + self.bigrams((before * 31 + ids) % self.config["bigram_buckets"])
        l = ids.shape[1]
        for block in self.blocks:
            x = block(x, ids, self.cos[:l], self.sin[:l])
        x = F.rms_norm(x, (x.shape[-1],), self.norm, self.config["norm_eps"])
        logits = F.linear(x, self.embed.weight if self.head is None else self.head)
        # Whole: in blocks of rows, each recomputed (torch.utils.checkpoint), a compiled step was 5 to 8 % slower on a CPU and took 4 %
        # less memory; in blocks that are kept it was no faster and took no less. PyTorch 2.11 has no fused product and loss.
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="JSON file of the model configuration")
    parser.add_argument("--batch", type=int, required=True, help="sequences a step")
    parser.add_argument("--sequence", type=int, required=True, help="tokens a sequence")
    parser.add_argument("--mode", choices=["eager", "compile"], default="eager")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="bf16: autocast, float32 weights")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    return parser.parse_args()


def main():
    args = arguments()
    config = json.load(open(args.model))
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high")
    model = Decoder(config).to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    run = torch.compile(model) if args.mode == "compile" else model
    shape = (args.batch, args.sequence)
    batches = [[torch.randint(config["vocab_size"], shape, device=args.device) for _ in range(2)] for _ in range(BATCHES)]
    autocast = torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bf16")
    seconds, losses = [], []
    for step in range(args.warmup + args.steps):
        start = time.perf_counter()
        with autocast:
            loss = run(*batches[step % BATCHES])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if args.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    of_first = losses[::BATCHES]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if args.device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    print(json.dumps({
        "seconds": seconds[args.warmup:], "first_loss": of_first[0], "last_loss": of_first[-1], "peak_bytes": peak,
        "n_parameters": sum(p.numel() for p in model.parameters()), "torch": torch.__version__,
    }))


if __name__ == "__main__":
    sys.exit(main())
