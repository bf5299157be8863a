//! MinHash: a short signature whose agreement estimates the Jaccard similarity of two texts' sets of word 5-grams.

use std::io::{Read, Result, Write};

use xxhash_rust::xxh3::xxh3_64;

/// Words of a shingle.
const SHINGLE_WORDS: usize = 5;
/// Bands of the locality-sensitive hash, and rows of each: half of all pairs of similarity 0.7 share a band, 94 % at 0.8.
pub const N_BANDS: usize = 25;
const N_ROWS: usize = 10;
/// Hash functions; the last six are in no band and only make the estimate finer.
pub const N_HASHES: usize = 256;
/// Bytes of a signature in a file.
pub const SIGNATURE_BYTES: usize = 4 * N_HASHES;
/// Pairs at or above this estimated similarity are near-duplicates.
pub const THRESHOLD: f64 = 0.7;

/// The least hash of a text's shingles under each of [`N_HASHES`] hash functions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature(Box<[u32; N_HASHES]>);

/// Odd multipliers and addends, fixed for all time: signatures of different runs agree.
fn functions() -> &'static [(u64, u64); N_HASHES] {
    static FUNCTIONS: std::sync::OnceLock<[(u64, u64); N_HASHES]> = std::sync::OnceLock::new();
    FUNCTIONS.get_or_init(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        std::array::from_fn(|_| (splitmix(&mut state) | 1, splitmix(&mut state)))
    })
}

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Hashes of the shingles of a text, without repetitions, sorted.
pub fn shingles(text: &str) -> Vec<u64> {
    let words: Vec<u64> = text
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
        .map(|word| xxh3_64(word.as_bytes()))
        .collect();
    let mix =
        |window: &[u64]| window.iter().fold(0u64, |h, w| (h.rotate_left(13) ^ w).wrapping_mul(0x9fb2_1c65_1e98_df25));
    let mut all: Vec<u64> = words.windows(SHINGLE_WORDS).map(mix).collect();
    if all.is_empty() {
        all.push(mix(&words));
    }
    all.sort_unstable();
    all.dedup();
    all
}

impl Signature {
    /// The signature of a text.
    pub fn of(text: &str) -> Self {
        let mut least = Box::new([u32::MAX; N_HASHES]);
        let functions = functions();
        for shingle in shingles(text) {
            for (slot, (multiplier, addend)) in least.iter_mut().zip(functions) {
                let hash = (shingle.wrapping_mul(*multiplier).wrapping_add(*addend) >> 32) as u32;
                *slot = (*slot).min(hash);
            }
        }
        Self(least)
    }

    /// The signature of such bytes; `None` when they are not four for each hash.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (hashes, rest) = bytes.as_chunks::<4>();
        let hashes: Vec<u32> = hashes.iter().map(|hash| u32::from_le_bytes(*hash)).collect();
        let hashes = hashes.into_boxed_slice().try_into().ok().filter(|_| rest.is_empty())?;
        Some(Self(hashes))
    }

    /// Estimated Jaccard similarity, `0..=1`.
    pub fn similarity(&self, other: &Self) -> f64 {
        let n_equal = self.0.iter().zip(other.0.iter()).filter(|(a, b)| a == b).count();
        n_equal as f64 / N_HASHES as f64
    }

    /// One hash a band; two texts that share one are compared.
    pub fn bands(&self) -> [u64; N_BANDS] {
        let bytes = self.to_bytes();
        std::array::from_fn(|band_idx| xxh3_64(&bytes[band_idx * 4 * N_ROWS..][..4 * N_ROWS]))
    }

    /// The hashes, little-endian.
    pub fn to_bytes(&self) -> [u8; SIGNATURE_BYTES] {
        let mut bytes = [0; SIGNATURE_BYTES];
        for (slot, hash) in bytes.chunks_exact_mut(4).zip(self.0.iter()) {
            slot.copy_from_slice(&hash.to_le_bytes());
        }
        bytes
    }

    /// Writes [`SIGNATURE_BYTES`] bytes.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write(&self, to: &mut impl Write) -> Result<()> {
        to.write_all(&self.to_bytes())
    }

    /// Reads [`SIGNATURE_BYTES`] bytes.
    ///
    /// # Errors
    /// Those of the reader; too few bytes are one.
    pub fn read(from: &mut impl Read) -> Result<Self> {
        let mut bytes = [0; SIGNATURE_BYTES];
        from.read_exact(&mut bytes)?;
        Self::from_bytes(&bytes).ok_or_else(|| std::io::ErrorKind::InvalidData.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(words: std::ops::Range<usize>) -> String {
        words.map(|n| format!("word{n} ")).collect()
    }

    fn jaccard(a: &str, b: &str) -> f64 {
        let (a, b) = (shingles(a), shingles(b));
        let common = a.iter().filter(|s| b.binary_search(s).is_ok()).count();
        common as f64 / (a.len() + b.len() - common) as f64
    }

    #[test]
    fn estimate_is_near_the_true_similarity() {
        for shift in [0, 20, 60, 120, 250, 400, 600] {
            let (a, b) = (text(0..600), text(shift..600 + shift));
            let (estimate, truth) = (Signature::of(&a).similarity(&Signature::of(&b)), jaccard(&a, &b));
            // Standard error of 256 hashes is at most 0.032.
            assert!((estimate - truth).abs() < 0.1, "shift {shift}: {estimate} for {truth}");
        }
    }

    #[test]
    fn signatures_come_back_from_bytes() {
        let signature = Signature::of(&text(0..100));
        let mut bytes = Vec::new();
        signature.write(&mut bytes).unwrap();
        assert_eq!(bytes.len(), SIGNATURE_BYTES);
        assert_eq!(Signature::read(&mut bytes.as_slice()).unwrap(), signature);
        assert!(Signature::read(&mut &bytes[1..]).is_err());
        assert_eq!(Signature::from_bytes(&bytes[1..]), None);
    }

    #[test]
    fn similar_texts_share_a_band_and_others_do_not() {
        let shared = |a: &str, b: &str| {
            let (a, b) = (Signature::of(a), Signature::of(b));
            a.bands().iter().zip(b.bands()).any(|(x, y)| *x == y)
        };
        assert!(shared(&text(0..600), &text(20..620)));
        assert!(!shared(&text(0..600), &text(500..1100)));
    }
}
