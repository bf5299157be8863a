//! Whatever bytes a GGUF file has, reading it ends in a model or in an error: no panic, no allocation beyond what its sizes may ask for.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use multicoder_model::decoder::FileBytes;
use multicoder_model::gguf::seal;
use multicoder_model::{GenerateOptions, Prompt, Served, generate};

/// What stands behind the last tensor of a seed.
const FOOTER_BYTES: usize = 16;

fuzz_target!(init: {
    // Libraries that read parts of a file panic at some, which is caught and no finding; what is not caught still ends the run.
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
}, |bytes: &[u8]| {
    // A right checksum, or nothing behind it would ever be tried.
    let body = &bytes[..bytes.len().saturating_sub(FOOTER_BYTES)];
    let file: FileBytes = Arc::new(seal(body.to_vec()));
    let Ok(model) = Served::from_gguf(file, "fuzzed") else { return };
    // What was read is used, too: a model that loads has to answer or to say why not.
    let mut computed = multicoder_model::Computed::new(model.config(), 1);
    let options = GenerateOptions { max_new_tokens: 6, guesses: true };
    // One language has a vocabulary and an expert of its own; the other prompt ends in the middle of a token.
    for (language, heal) in [(Some("lua"), &b""[..]), (None, b"d")] {
        let prompt = Prompt { ids: vec![1, 2, 3, 1, 2], heal: heal.to_vec() };
        let mut sequence = model.sequence(&mut computed);
        let _ = generate(&mut sequence, &model.tokenizer, &prompt, language, &options, &mut |_| false, &|| false);
    }
    let _ = model.check_goldens();
});
