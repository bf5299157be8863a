//! Going on with a text allocates nothing: what a pass needs is kept from the one before.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::Device;
use multicoder_model::decoder::{Decoder, DecoderCache, Floats, Format, Simd, Worker};
use multicoder_model::{CodeLm, ModelConfig};
use serde_json::json;

struct Counting;

static N_ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator, with a count.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        N_ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn config(moe: serde_json::Value) -> ModelConfig {
    serde_json::from_value(json!({
        "vocab_size": 96, "d_model": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_head": 16, "d_ff": 96, "context_tokens": 256,
        "bigram_buckets": 16, "languages": ["go", "lua"], "moe": moe,
    }))
    .unwrap()
}

/// Alone in its program: others' allocations would be counted, too.
#[test]
fn a_token_after_others_allocates_nothing() {
    let moe = |router: &str, shared: usize| json!({"layers": {"every_n": 1}, "n_experts": 2, "d_ff_expert": 32, "d_ff_shared": shared, "router": {"kind": router}});
    for (what, moe) in [("dense", json!(null)), ("pl_hard", moe("pl_hard", 0)), ("pl_shared", moe("pl_shared", 32))] {
        let config = config(moe);
        let lm = CodeLm::init(&config, 3, &Device::Cpu).unwrap();
        let weights = Arc::new(Floats::of(&lm, Format::Q8).unwrap());
        let decoder = Decoder::new(&config, weights, Simd::best()).unwrap();
        for n_threads in [1, 2] {
            let (mut cache, mut worker) = (DecoderCache::new(&config, 256), Worker::new(n_threads));
            let mut next = |ids: &[u32]| decoder.decode((ids, 1), 1, &mut cache, &mut worker, &|| false).unwrap();
            // Ids are kept in a vector that doubles: there is room for as many again.
            next(&[3; 70]);
            (0..4).for_each(|id| next(&[id]));
            let before = N_ALLOCATIONS.load(Ordering::SeqCst);
            (0..40).for_each(|id| next(&[id]));
            let n = N_ALLOCATIONS.load(Ordering::SeqCst) - before;
            assert_eq!(n, 0, "{what}, {n_threads} threads: allocations of 40 tokens");
        }
    }
}
