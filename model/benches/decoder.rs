//! Tokens a second of the decoder, read and written, by format and threads, on a shape of 34 million
//! random weights, 8 layers of 512. `cargo bench -p multicoder-model --bench decoder [-- --busy]`; `--busy` keeps one core at work beside it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use candle_core::Device;
use multicoder_model::decoder::{Decoder, DecoderCache, Floats, Format, Simd, Worker};
use multicoder_model::{CodeLm, Error, ModelConfig};

const SHAPE: &str = r#"{"vocab_size": 16384, "d_model": 512, "n_layers": 8, "n_heads": 8, "n_kv_heads": 8, "d_head": 64, "d_ff": 1408,
                        "context_tokens": 2560}"#;
const ROUNDS: usize = 5;

fn main() -> Result<(), Error> {
    let config: ModelConfig = serde_json::from_str(SHAPE).map_err(|e| Error::Input(e.to_string()))?;
    let lm = CodeLm::init(&config, 1, &Device::Cpu)?;
    let ends = Arc::new(AtomicBool::new(false));
    let neighbour = std::env::args().any(|argument| argument == "--busy").then(|| {
        let ends = ends.clone();
        std::thread::spawn(move || while !ends.load(Ordering::Relaxed) {})
    });
    println!("tokens/s, medians of {ROUNDS}      512 read   64 written   24 written after 2,000");
    for format in [Format::Q8, Format::Q4, Format::F16] {
        let source = Arc::new(Floats::of(&lm, format)?);
        let decoder = Decoder::new(&config, source, Simd::best())?;
        for n_threads in [1, 2] {
            let [read, short, long] = measure(&decoder, n_threads)?;
            println!("{:<4} {n_threads} threads {read:>23.0} {short:>12.0} {long:>24.0}", format!("{format:?}"));
        }
    }
    ends.store(true, Ordering::Relaxed);
    if let Some(neighbour) = neighbour {
        neighbour.join().map_err(|_| Error::Input("the neighbour panicked".into()))?;
    }
    Ok(())
}

fn measure(decoder: &Decoder, n_threads: usize) -> Result<[f64; 3], Error> {
    let ids: Vec<u32> = (0..2048u32).map(|i| i * 7919 % 16384).collect();
    let (mut worker, mut cache) = (Worker::new(n_threads), DecoderCache::new(decoder.config(), 2560));
    let mut rates = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        cache.truncate(0);
        rates[0].push(rate(decoder, &mut worker, &mut cache, (&ids[..512], 128))?);
        cache.truncate(16);
        rates[1].push(rate(decoder, &mut worker, &mut cache, (&ids[..64], 1))?);
        cache.truncate(16);
        rate(decoder, &mut worker, &mut cache, (&ids[16..2000], 128))?;
        rates[2].push(rate(decoder, &mut worker, &mut cache, (&ids[..24], 1))?);
    }
    Ok(rates.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates[ROUNDS / 2]
    }))
}

/// Tokens a second, some at a time.
fn rate(
    decoder: &Decoder,
    worker: &mut Worker,
    cache: &mut DecoderCache,
    (ids, at_once): (&[u32], usize),
) -> Result<f64, Error> {
    let start = Instant::now();
    for ids in ids.chunks(at_once) {
        decoder.decode((ids, 1), 0, cache, worker, &|| false)?;
    }
    Ok(ids.len() as f64 / start.elapsed().as_secs_f64())
}
