"""Makes the golden checkpoints and logits under tests/golden/ with the reference implementation.

    python -m venv venv && venv/bin/pip install torch transformers==5.* safetensors tokenizers
    venv/bin/python tests/golden/make_golden.py [NAME ...]

Each NAME (qwen2, llama, qwen3) is a folder:

    checkpoint/config.json, model.safetensors, tokenizer.json   a Hugging Face checkpoint with tiny random weights
    golden.safetensors    ids_i [L] and logits_i [L, V] (float32) for each token sequence i
    golden.json           versions used, texts with the ids that `tokenizers` gives them, the loss and the gradient norms of sequence 0

Weights are drawn once from a seed, stored in the dtype below and read back before the reference runs, so that the
logits belong to the stored numbers exactly. Biases and norm weights are random too: with zeros and ones, a loader that
forgets them would pass.
"""

import json
import pathlib
import re
import sys

import tokenizers
import torch
import transformers
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).resolve().parent
SPECIALS = ["<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
TEXTS = ["def add(left, right):\n    return left + right\n", "für α in 0..10 { println!(\"{α}\"); }", "  \t\n\n x"]
SIZES = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
SIZES |= dict(max_position_embeddings=128, rms_norm_eps=1e-6, bos_token_id=None, pad_token_id=None)

MODELS = {
    # Tied embeddings, biases on q, k and v, the rotary base of Qwen2.5-Coder; bfloat16 and
    # `rope_theta`, `torch_dtype` at the top level, as the real ones are stored.
    "qwen2": (
        lambda: transformers.Qwen2Config(
            vocab_size=320, tie_word_embeddings=True, rope_parameters=rope(1_000_000.0), **SIZES
        ),
        torch.bfloat16,
    ),
    # Separate output matrix, no bias; float32. rope_parameters as transformers 5 writes them; 4.x wrote the form of qwen2.
    "llama": (
        lambda: transformers.LlamaConfig(
            vocab_size=272, tie_word_embeddings=False, rope_parameters=rope(10_000.0), **SIZES | dict(rms_norm_eps=1e-5, intermediate_size=96)
        ),
        torch.float32,
    ),
    # Norm on queries and keys, a head size that is not hidden / heads; bfloat16.
    "qwen3": (
        lambda: transformers.Qwen3Config(
            vocab_size=320, tie_word_embeddings=True, head_dim=24, rope_parameters=rope(1_000_000.0), **SIZES
        ),
        torch.bfloat16,
    ),
}


def rope(theta):
    return {"rope_type": "default", "rope_theta": theta}


def make_tokenizer(vocab_size):
    """Byte-level BPE of the Qwen2 form: 256 bytes, the special tokens, then merges learnt from TEXTS."""
    split = tokenizers.Regex(r"\p{N}|[^\r\n\p{L}\p{N}]?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Split(split, behavior="isolated"),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIALS), initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer


def randomise(model, seed):
    """Every parameter from one generator: matrices wide enough that attention is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight"):
                parameter.copy_(1.0 + 0.2 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(noise * (0.4 if "embed" in name else parameter.shape[-1] ** -0.5 * 1.5))


def write_as_transformers_4(path):
    """The published Qwen2.5-Coder config.json has these two keys in this older form."""
    config = json.loads(path.read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def sequences(tokenizer, vocab_size):
    generator = torch.Generator().manual_seed(7)
    random_ids = torch.randint(0, vocab_size, (33,), generator=generator)
    return [torch.tensor(tokenizer.encode(TEXTS[0]).ids), random_ids, torch.tensor([5])]


def make(name):
    make_config, dtype = MODELS[name]
    folder = HERE / name
    checkpoint = folder / "checkpoint"
    config = make_config()
    config.dtype = dtype
    tokenizer = make_tokenizer(config.vocab_size)
    config.eos_token_id = tokenizer.token_to_id(SPECIALS[0])
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    randomise(model, seed=20)
    model.to(dtype).save_pretrained(checkpoint)
    (checkpoint / "generation_config.json").unlink(missing_ok=True)
    if name == "qwen2":
        write_as_transformers_4(checkpoint / "config.json")
    tokenizer.save(str(checkpoint / "tokenizer.json"))

    model = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tensors = {}
    for index, ids in enumerate(sequences(tokenizer, config.vocab_size)):
        with torch.no_grad():
            logits = model(ids[None]).logits[0]
        tensors[f"ids_{index}"] = ids.to(torch.int64)
        tensors[f"logits_{index}"] = logits.to(torch.float32).contiguous()
    save_file(tensors, folder / "golden.safetensors")

    ids = tensors["ids_0"]
    loss = torch.nn.functional.cross_entropy(model(ids[None]).logits[0, :-1], ids[1:])
    loss.backward()
    golden = {
        "made_with": {p.__name__: p.__version__.split("+")[0] for p in (torch, transformers, tokenizers)},
        "texts": [{"text": text, "ids": tokenizer.encode(text).ids} for text in TEXTS],
        "mean_loss_0": loss.item(),
        "gradient_norms_0": {n: p.grad.norm().item() for n, p in model.named_parameters()},
    }
    text = json.dumps(golden, indent=1, ensure_ascii=False)
    text = re.sub(r"\[\s+([\d,\s]+?)\s+\]", lambda m: "[" + " ".join(m[1].split()) + "]", text)
    (folder / "golden.json").write_text(text + "\n")
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)
    print(name, "loss", loss.item(), "bytes", sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()))


for name in sys.argv[1:] or MODELS:
    make(name)
