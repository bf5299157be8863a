//! The weights of a GGUF file, read where they stand: a page of the file is touched when its weights are first wanted.

use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;
use std::sync::Arc;

use candle_core::Device;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, TensorInfo};
use half::f16;

use super::packed::{COLS, Format, Packed, read_q4_k};
use super::weights::WeightSource;
use crate::error::{Error, Result};

/// The bytes of a file: in memory, mapped, or part of the program.
pub type FileBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// The weights of a GGUF file.
pub struct GgufWeights {
    bytes: FileBytes,
    /// Each with where its bytes stand.
    tensors: HashMap<String, (TensorInfo, Range<usize>)>,
    data_offset: u64,
    origin: String,
}

impl GgufWeights {
    /// `origin` names the file in errors.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for bytes that are no GGUF file, or that end before its weights do.
    pub fn open(bytes: FileBytes, origin: &str) -> Result<GgufWeights> {
        let content = crate::gguf::content((*bytes).as_ref(), origin)?;
        GgufWeights::of(bytes, content, origin)
    }

    /// As [`GgufWeights::open`], with what stands at the beginning of the file already read.
    pub(crate) fn of(bytes: FileBytes, content: Content, origin: &str) -> Result<GgufWeights> {
        let all = (*bytes).as_ref();
        let mut tensors = HashMap::new();
        let mut infos: Vec<(String, TensorInfo)> = content.tensor_infos.into_iter().collect();
        infos.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        for (name, info) in infos {
            let n = info.shape.dims().iter().try_fold(1usize, |n, dim| n.checked_mul(*dim)).unwrap_or(usize::MAX);
            let (block, size) = (info.ggml_dtype.block_size(), info.ggml_dtype.type_size());
            let start = content.tensor_data_offset.saturating_add(info.offset);
            let start = usize::try_from(start).unwrap_or(usize::MAX);
            let is_whole = info.shape.dims().last().is_some_and(|cols| cols.is_multiple_of(block));
            let end = start.saturating_add((n / block).saturating_mul(size));
            if !is_whole || end > all.len() {
                let reason = format!("tensor {name}: bytes {start}..{end} of {}", all.len());
                return Err(Error::corrupt(origin, reason));
            }
            tensors.insert(name, (info, start..end));
        }
        let (data_offset, origin) = (content.tensor_data_offset, origin.to_owned());
        Ok(GgufWeights { bytes, tensors, data_offset, origin })
    }

    fn bytes(&self) -> &[u8] {
        (*self.bytes).as_ref()
    }

    fn get(&self, name: &str, shape: &[usize]) -> Result<&(TensorInfo, Range<usize>)> {
        let wrong = |found: String| Error::Weight {
            origin: self.origin.clone(),
            name: name.to_owned(),
            expected: shape.to_vec(),
            found,
        };
        let tensor = self.tensors.get(name).ok_or_else(|| wrong("none".to_owned()))?;
        if tensor.0.shape.dims() != shape {
            return Err(wrong(format!("{:?}", tensor.0.shape.dims())));
        }
        Ok(tensor)
    }

    fn unknown(&self, name: &str, dtype: GgmlDType) -> Error {
        Error::corrupt(&self.origin, format!("tensor {name}: {dtype:?}: expected F32, F16, Q8_0, Q4_0 or Q4K"))
    }
}

impl WeightSource for GgufWeights {
    fn matrix(&self, name: &str, shape: (usize, usize)) -> Result<Packed> {
        let (info, range) = self.get(name, &[shape.0, shape.1])?;
        let bytes = &self.bytes()[range.clone()];
        let format = match info.ggml_dtype {
            GgmlDType::Q8_0 => Format::Q8,
            GgmlDType::Q4_0 => Format::Q4,
            GgmlDType::Q4K => Format::Q4Least,
            GgmlDType::F16 => return Packed::from_floats(Format::F16, &f16s(bytes).collect::<Vec<_>>(), shape.1),
            GgmlDType::F32 => return Packed::from_floats(Format::F32, &f32s(bytes).collect::<Vec<_>>(), shape.1),
            other => return Err(self.unknown(name, other)),
        };
        Packed::from_blocks(format, bytes, shape)
    }

    fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let (info, _) = self.get(name, shape)?;
        let tensor = info.read(&mut Cursor::new(self.bytes()), self.data_offset, &Device::Cpu)?;
        Ok(tensor.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1()?)
    }

    fn add_row(&self, name: &str, row: usize, out: &mut [f32]) -> Result<()> {
        let found = self
            .tensors
            .get(name)
            .filter(|(info, _)| matches!(info.shape.dims(), [rows, cols] if row < *rows && *cols == out.len()));
        let (info, range) = found.ok_or_else(|| {
            Error::corrupt(&self.origin, format!("tensor {name}: expected a row {row} of {} numbers", out.len()))
        })?;
        let size = range.len() / info.shape.dims()[0];
        let bytes = &self.bytes()[range.start + row * size..][..size];
        match info.ggml_dtype {
            GgmlDType::F32 => add(out, f32s(bytes)),
            GgmlDType::F16 => add(out, f16s(bytes)),
            GgmlDType::Q8_0 => add(out, blocks(bytes, 34, |block, k| f32::from(block[2 + k] as i8))),
            GgmlDType::Q4_0 => add(out, blocks(bytes, 18, nibble)),
            GgmlDType::Q4K => add(out, superblocks(bytes)),
            other => return Err(self.unknown(name, other)),
        }
        Ok(())
    }

    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }
}

fn add(out: &mut [f32], values: impl Iterator<Item = f32>) {
    out.iter_mut().zip(values).for_each(|(out, x)| *out += x);
}

fn f32s(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes))
}

fn f16s(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.as_chunks::<2>().0.iter().map(|bytes| f16::from_bits(u16::from_le_bytes(*bytes)).to_f32())
}

/// The numbers of blocks of `size` bytes, each of which begins with its scale.
fn blocks(bytes: &[u8], size: usize, number: fn(&[u8], usize) -> f32) -> impl Iterator<Item = f32> + '_ {
    bytes.chunks_exact(size).flat_map(move |block| {
        let scale = f16::from_bits(u16::from_le_bytes([block[0], block[1]])).to_f32();
        (0..COLS).map(move |k| scale * number(block, k))
    })
}

/// The numbers of superblocks, as products have them.
fn superblocks(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.as_chunks::<144>().0.iter().flat_map(|bytes| (0..8).map(|j| read_q4_k(bytes, j))).flat_map(|block| {
        let [scale, least] = block.scales.map(f16::to_f32);
        block.q.into_iter().map(move |q| scale * f32::from(q) - least)
    })
}

fn nibble(block: &[u8], k: usize) -> f32 {
    let byte = block[2 + k % 16];
    f32::from(if k < 16 { byte & 15 } else { byte >> 4 }) - 8.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelConfig;
    use crate::config::tests::tiny;
    use crate::decoder::{Decoder, DecoderCache, Simd, Worker};
    use crate::gguf::{Contents, Quantization, to_bytes};
    use crate::lm::CodeLm;
    use crate::router::RouterConfig;
    use crate::tape::tests::model;
    use crate::tokenizer::tests::toy;

    fn file(config: &ModelConfig, quantization: Quantization) -> (CodeLm, Vec<u8>) {
        let (lm, tokenizer) = (model(config), toy());
        let contents =
            Contents { name: "toy", lm: &lm, tokenizer: &tokenizer, quantization, goldens: &[], vocabulary: None };
        let bytes = to_bytes(&contents).unwrap();
        (lm, bytes)
    }

    /// Every table, experts, norms of heads.
    fn config() -> ModelConfig {
        let mut config = tiny(Some(RouterConfig::all().remove(1)));
        config.vocab_size = toy().vocab_size().next_multiple_of(32);
        (config.bigram_buckets, config.value_embedding_layers, config.qk_norm) = (64, vec![1], true);
        config
    }

    #[test]
    fn a_file_is_decoded_where_it_stands() {
        for quantization in [Quantization::F32, Quantization::Q8_0, Quantization::Q4_0, Quantization::Q4K] {
            let mut config = config();
            if quantization == Quantization::Q4K {
                (config.d_model, config.d_ff) = (256, 512);
            }
            let (_, bytes) = file(&config, quantization);
            let lm = crate::gguf::read(&bytes, "toy.gguf", &Device::Cpu).unwrap().lm;
            let source = GgufWeights::open(Arc::new(bytes), "toy.gguf").unwrap();
            assert!(source.has("model.norm.weight") && !source.has("model.norm.bias"));
            let decoder = Decoder::new(lm.config(), Arc::new(source), Simd::best()).unwrap();
            let ids: Vec<u32> = (0..20).map(|i| i * 5 % 90).collect();
            let (mut cache, mut worker) = (DecoderCache::new(lm.config(), 64), Worker::new(1));
            decoder.decode((&ids, 20), 1, &mut cache, &mut worker, &|| false).unwrap();
            let expected = lm.forward_logits(&ids, 1).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let largest = expected.iter().fold(1f32, |largest, z| largest.max(z.abs()));
            let most = expected.iter().zip(&worker.logits).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
            // Activations are rounded to eight bits, keys and values are kept in 16.
            let tolerance = if quantization == Quantization::F32 { 4e-3 } else { 0.05 };
            assert!(most < tolerance * largest, "{quantization:?}: {most} of {largest}");
        }
    }

    #[test]
    fn rows_of_tables_are_those_of_the_tensor_library() {
        let w: Vec<f32> = crate::ops::tests::values(&[3 * 256], 3).to_vec1().unwrap();
        let tensor = candle_core::Tensor::from_slice(&w, (3, 256), &Device::Cpu).unwrap();
        for dtype in [GgmlDType::F32, GgmlDType::F16, GgmlDType::Q8_0, GgmlDType::Q4_0, GgmlDType::Q4K] {
            // Two scales of six bits times one of 16 are one of 16 here.
            let tolerance = if dtype == GgmlDType::Q4K { 1e-3 } else { 1e-5 };
            let quantized = candle_core::quantized::QTensor::quantize(&tensor, dtype).unwrap();
            let mut cursor = Cursor::new(Vec::new());
            candle_core::quantized::gguf_file::write(&mut cursor, &[], &[("table", &quantized)]).unwrap();
            let source = GgufWeights::open(Arc::new(cursor.into_inner()), "table.gguf").unwrap();
            let expected = quantized.dequantize(&Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
            let mut out = vec![1f32; 256];
            source.add_row("table", 2, &mut out).unwrap();
            assert!(out.iter().zip(&expected[2]).all(|(a, b)| (a - 1.0 - b).abs() < tolerance), "{dtype:?}");
            assert_eq!(source.floats("table", &[3, 256]).unwrap(), expected.concat());
            let error = source.add_row("table", 3, &mut out).unwrap_err().to_string();
            assert!(error.contains("table.gguf: tensor table: expected a row 3 of 256 numbers"), "{error}");
        }
    }

    #[test]
    fn a_tensor_of_more_numbers_than_can_be_counted_is_refused() {
        let (_, bytes) = file(&config(), Quantization::F32);
        let mut content = Content::read(&mut Cursor::new(&bytes)).unwrap();
        let info = content.tensor_infos.get_mut("model.norm.weight").unwrap();
        info.shape = (1usize << 33, 1usize << 33).into();
        let error = GgufWeights::of(Arc::new(bytes), content, "toy.gguf").err().unwrap().to_string();
        assert!(error.contains("model.norm.weight"), "{error}");
    }

    #[test]
    fn an_alignment_that_the_library_divides_by_is_refused() {
        let mut cursor = Cursor::new(Vec::new());
        let zero = candle_core::quantized::gguf_file::Value::U32(0);
        candle_core::quantized::gguf_file::write(&mut cursor, &[("general.alignment", &zero)], &[]).unwrap();
        let error = GgufWeights::open(Arc::new(cursor.into_inner()), "zero.gguf").err().unwrap().to_string();
        assert!(error.starts_with("zero.gguf: "), "{error}");
    }

    #[test]
    fn a_file_that_ends_too_early_is_refused() {
        let (_, bytes) = file(&config(), Quantization::Q8_0);
        for len in [0, 4, 100, bytes.len() / 2] {
            let error = GgufWeights::open(Arc::new(bytes[..len].to_vec()), "cut.gguf").err().unwrap().to_string();
            assert!(error.starts_with("cut.gguf: "), "{len}: {error}");
        }
    }
}
