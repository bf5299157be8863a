//! Writes small files that are right, to begin with: one for each way in which weights are stored.

use std::path::PathBuf;

use multicoder_model::gguf::{Contents, Quantization, to_bytes};
use multicoder_model::tokenizer::TokenizerOptions;
use multicoder_model::{CodeLm, Golden, ModelConfig, Tokenizer, VocabularyFilter};
use serde_json::json;

fn main() {
    let folder = PathBuf::from(std::env::args().nth(1).expect("the folder to write to"));
    std::fs::create_dir_all(&folder).expect("a folder that can be written");
    let languages = vec!["lua".to_owned(), "python".to_owned()];
    let options = TokenizerOptions { vocab_size: 280, languages: languages.clone(), ..TokenizerOptions::default() };
    let tokenizer =
        Tokenizer::train(std::iter::repeat_n("def f(x):\n    return x\n", 8), &options).expect("a tokenizer");
    let config: ModelConfig = serde_json::from_value(json!({
        "vocab_size": tokenizer.vocab_size(), "d_model": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "d_head": 16, "d_ff": 32,
        "context_tokens": 16, "languages": languages, "bigram_buckets": 8,
        "moe": {"layers": {"every_n": 2}, "n_experts": 2, "d_ff_expert": 32, "router": {"kind": "pl_shared"}, "d_ff_shared": 32},
    }))
    .expect("a configuration");
    // One layer whose rows are whole superblocks.
    let wide = ModelConfig { d_model: 256, n_layers: 1, bigram_buckets: 0, moe: None, ..config.clone() };
    let [lm, wide] =
        [&config, &wide].map(|config| CodeLm::init(config, 1, &candle_core::Device::Cpu).expect("a model"));
    let mut filter = VocabularyFilter::default();
    filter.insert("lua", (0..tokenizer.vocab_size() as u32).filter(|id| id % 3 != 0).collect());
    let golden = Golden { language: Some("lua".to_owned()), ids: vec![1, 2], next_ids: vec![3], max_logit: 0.5 };
    for (name, lm, quantization, vocabulary) in [
        ("f32", &lm, Quantization::F32, None),
        ("q8_0", &lm, Quantization::Q8_0, Some(&filter)),
        ("q4_0", &lm, Quantization::Q4_0, None),
        ("q4_k", &wide, Quantization::Q4K, None),
    ] {
        let goldens = std::slice::from_ref(&golden);
        let contents = Contents { name, lm, tokenizer: &tokenizer, quantization, goldens, vocabulary };
        let path = folder.join(format!("{name}.gguf"));
        std::fs::write(&path, to_bytes(&contents).expect("a file")).expect("a folder that can be written");
        println!("{}", path.display());
    }
}
