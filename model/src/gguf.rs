//! The serving format: one GGUF file (architecture `multicoder`) with configuration, tokenizer, quantized weights and golden pairs,
//! and a checksum of all of it behind the last tensor.

use std::collections::HashMap;
use std::io::{Cursor, Write};
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Content, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use xxhash_rust::xxh3::xxh3_64;

use crate::bundle::{Bundle, BundleInfo, Golden};
use crate::config::ModelConfig;
use crate::error::{Error, Result, caught};
use crate::lm::CodeLm;
use crate::params::Params;
use crate::tokenizer::Tokenizer;
use crate::vocabulary::VocabularyFilter;

const ARCHITECTURE: &str = "multicoder";
/// Before the language, the key of the entries that it uses.
const VOCABULARY: &str = "multicoder.vocabulary.";
/// Stands before the checksum at the end of the file.
const FOOTER: &[u8; 8] = b"MCXXH3\0\x01";

/// Weight formats of the serving file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    F32,
    /// Blocks of 32 values with one 16-bit scale; rows whose length is no multiple of 32 stay float32.
    Q8_0,
    /// As `Q8_0`, but four bits for the matrices of the layers. Embeddings, tables and the head keep eight, which small models need there.
    Q4_0,
    /// As `Q4_0`, but superblocks of 256 values, whose blocks have a least value besides their scale, where rows are whole ones.
    Q4K,
}

impl Quantization {
    pub fn name(self) -> &'static str {
        match self {
            Quantization::F32 => "f32",
            Quantization::Q8_0 => "q8_0",
            Quantization::Q4_0 => "q4_0",
            Quantization::Q4K => "q4_k",
        }
    }

    fn dtype_for(self, name: &str, tensor: &Tensor) -> GgmlDType {
        let is_table = name.contains("embed") || name.starts_with("lm_head");
        match self {
            _ if tensor.rank() != 2 || !tensor.dims()[1].is_multiple_of(32) => GgmlDType::F32,
            Quantization::F32 => GgmlDType::F32,
            Quantization::Q4K if !is_table && tensor.dims()[1].is_multiple_of(256) => GgmlDType::Q4K,
            Quantization::Q4_0 | Quantization::Q4K if !is_table => GgmlDType::Q4_0,
            Quantization::Q8_0 | Quantization::Q4_0 | Quantization::Q4K => GgmlDType::Q8_0,
        }
    }
}

/// Content of a serving file.
pub struct Contents<'a> {
    pub name: &'a str,
    pub lm: &'a CodeLm,
    pub tokenizer: &'a Tokenizer,
    pub quantization: Quantization,
    pub goldens: &'a [Golden],
    /// Of languages of the model; none where all use all.
    pub vocabulary: Option<&'a VocabularyFilter>,
}

/// The bytes of a serving file.
pub fn to_bytes(contents: &Contents) -> Result<Vec<u8>> {
    let json = |value: serde_json::Result<String>| value.map_err(|e| Error::corrupt(contents.name, e));
    let metadata = [
        ("general.architecture", Value::String(ARCHITECTURE.to_string())),
        ("general.name", Value::String(contents.name.to_string())),
        ("multicoder.quantization", Value::String(contents.quantization.name().to_string())),
        ("multicoder.config", Value::String(json(serde_json::to_string(contents.lm.config()))?)),
        ("multicoder.goldens", Value::String(json(serde_json::to_string(contents.goldens))?)),
        ("tokenizer.huggingface.json", Value::String(contents.tokenizer.to_json()?)),
    ];
    let languages = contents.vocabulary.into_iter().flat_map(VocabularyFilter::languages);
    let vocabulary: Vec<(String, Value)> = languages.map(|of| bits(of, contents.lm)).collect();
    let metadata = metadata.iter().map(|(key, value)| (*key, value));
    let metadata = metadata.chain(vocabulary.iter().map(|(key, value)| (key.as_str(), value))).collect::<Vec<_>>();
    let quantize = |(name, tensor): &(String, Tensor)| -> Result<(String, QTensor)> {
        Ok((name.clone(), QTensor::quantize(tensor, contents.quantization.dtype_for(name, tensor))?))
    };
    let tensors = contents.lm.weights().iter().map(quantize).collect::<Result<Vec<_>>>()?;
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut cursor = Cursor::new(Vec::new());
    gguf_file::write(&mut cursor, &metadata, &tensors)?;
    Ok(seal(cursor.into_inner()))
}

/// The metadata of what a language uses of the vocabulary.
fn bits((language, ids): (&str, &[u32]), lm: &CodeLm) -> (String, Value) {
    let bits = VocabularyFilter::to_bits(ids, lm.config().vocab_size);
    (format!("{VOCABULARY}{language}"), Value::Array(bits.into_iter().map(Value::U8).collect()))
}

/// What each language uses of the vocabulary.
pub(crate) fn read_vocabulary(content: &Content, config: &ModelConfig, origin: &str) -> Result<VocabularyFilter> {
    let mut filter = VocabularyFilter::default();
    for language in &config.languages {
        let key = format!("{VOCABULARY}{language}");
        let Some(value) = content.metadata.get(&key) else { continue };
        let byte = |value: &Value| value.to_u8().map_err(|e| Error::corrupt(origin, format!("metadata {key}: {e}")));
        let Value::Array(bits) = value else {
            return Err(Error::corrupt(origin, format!("metadata {key}: expected an array of bytes")));
        };
        let bits = bits.iter().map(byte).collect::<Result<Vec<u8>>>()?;
        let ids = VocabularyFilter::from_bits(&bits, config.vocab_size);
        filter.insert(language, ids.map_err(|e| Error::corrupt(origin, format!("metadata {key}: {e}")))?);
    }
    Ok(filter)
}

/// A GGUF file with the checksum of all of it at its end.
pub fn seal(mut body: Vec<u8>) -> Vec<u8> {
    let checksum = xxh3_64(&body);
    body.extend(FOOTER);
    body.extend(checksum.to_le_bytes());
    body
}

/// Writes a serving file beside `path` and renames it into place.
pub fn write(contents: &Contents, path: &Path) -> Result<()> {
    let beside = path.with_extension("gguf.part");
    let bytes = to_bytes(contents)?;
    let written = std::fs::File::create(&beside).and_then(|mut file| {
        file.write_all(&bytes)?;
        file.sync_all()
    });
    written.and_then(|()| std::fs::rename(&beside, path)).map_err(|e| Error::file(path, e))
}

/// Reads the content of a serving file to serve it.
pub(crate) fn read(bytes: &[u8], origin: &str, device: &Device) -> Result<Bundle> {
    read_as(bytes, origin, false, device)
}

/// Reads the content of a serving file; a trainable model keeps what a backward pass needs.
pub fn read_as(bytes: &[u8], origin: &str, trainable: bool, device: &Device) -> Result<Bundle> {
    let (config, tokenizer, info, content) = read_head(bytes, origin)?;
    let (mut tensors, cpu) = (HashMap::new(), &Device::Cpu);
    let mut names: Vec<&String> = content.tensor_infos.keys().collect();
    names.sort_unstable();
    let mut cursor = Cursor::new(bytes);
    for name in names {
        // On the CPU: the parameters move to the device as float32.
        let tensor = content.tensor(&mut cursor, name, cpu).and_then(|tensor| tensor.dequantize(cpu));
        tensors.insert(name.clone(), tensor.map_err(|e| Error::corrupt(origin, format!("tensor {name}: {e}")))?);
    }
    let lm = CodeLm::new(&config, Params::from_tensors(tensors, origin, trainable, device), device)?;
    Bundle::new(lm, tokenizer, info)
}

/// What stands at the beginning of a GGUF file.
///
/// # Errors
/// [`Error::Corrupt`] for bytes that are no such file.
pub(crate) fn content(bytes: &[u8], origin: &str) -> Result<Content> {
    let read = caught(|| Content::read(&mut Cursor::new(bytes)));
    read.map_err(|e| Error::corrupt(origin, e))?.map_err(|e| Error::corrupt(origin, e))
}

/// All of a serving file but its weights, and where those stand.
pub(crate) fn read_head(bytes: &[u8], origin: &str) -> Result<(ModelConfig, Tokenizer, BundleInfo, Content)> {
    let (body, checksum) = verify(bytes, origin)?;
    let content = content(body, origin)?;
    let text = |key: &str| match content.metadata.get(key) {
        Some(Value::String(text)) => Ok(text.as_str()),
        _ => Err(Error::corrupt(origin, format!("metadata {key}: expected a string"))),
    };
    let architecture = text("general.architecture")?;
    if architecture != ARCHITECTURE {
        let reason = format!("general.architecture = {architecture}: expected {ARCHITECTURE}");
        return Err(Error::corrupt(origin, reason));
    }
    let json_error = |key: &str, e: serde_json::Error| Error::corrupt(origin, format!("metadata {key}: {e}"));
    let config: ModelConfig =
        serde_json::from_str(text("multicoder.config")?).map_err(|e| json_error("multicoder.config", e))?;
    config.validate()?;
    let goldens = serde_json::from_str(text("multicoder.goldens")?).map_err(|e| json_error("multicoder.goldens", e))?;
    let mut info = BundleInfo::new(&config, origin, text("multicoder.quantization")?);
    info.name = text("general.name")?.to_string();
    info.checksum = format!("{checksum:016x}");
    info.goldens = goldens;
    let tokenizer = Tokenizer::from_json(text("tokenizer.huggingface.json")?)?;
    Ok((config, tokenizer, info, content))
}

/// Checks the footer and returns what stands before it, and its checksum.
fn verify<'a>(bytes: &'a [u8], origin: &str) -> Result<(&'a [u8], u64)> {
    if !bytes.starts_with(b"GGUF") {
        return Err(Error::corrupt(origin, "not a GGUF file: expected it to begin with GGUF"));
    }
    let footer = bytes.split_last_chunk::<8>().and_then(|(rest, checksum)| {
        let (body, magic) = rest.split_last_chunk::<8>()?;
        (magic == FOOTER).then_some((body, u64::from_le_bytes(*checksum)))
    });
    let Some((body, checksum)) = footer else {
        return Err(Error::corrupt(origin, "no checksum at the end: the file is truncated or not one of ours"));
    };
    let found = xxh3_64(body);
    if found != checksum {
        let reason = format!("checksum {found:016x}: expected {checksum:016x}; the file is damaged");
        return Err(Error::corrupt(origin, reason));
    }
    Ok((body, checksum))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::tiny;
    use crate::router::RouterConfig;
    use crate::tokenizer::tests::toy;

    fn packed(quantization: Quantization) -> (CodeLm, Vec<u8>) {
        let tokenizer = toy();
        let mut config = tiny(Some(RouterConfig::all().remove(0)));
        config.vocab_size = tokenizer.vocab_size();
        let lm = CodeLm::init(&config, 5, &Device::Cpu).unwrap();
        let contents =
            Contents { name: "toy", lm: &lm, tokenizer: &tokenizer, quantization, goldens: &[], vocabulary: None };
        let bytes = to_bytes(&contents).unwrap();
        (lm, bytes)
    }

    fn logits(lm: &CodeLm) -> Vec<f32> {
        lm.forward_logits(&[1, 2, 3], 0).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn a_file_round_trip_keeps_the_logits() {
        let (lm, bytes) = packed(Quantization::F32);
        let bundle = read(&bytes, "toy.gguf", &Device::Cpu).unwrap();
        assert_eq!(logits(&bundle.lm), logits(&lm));
        assert_eq!((bundle.info.name.as_str(), bundle.info.checksum.len()), ("toy", 16));

        let (mut size, mut last_worst) = (bytes.len(), 0.0);
        for (quantization, most) in [(Quantization::Q8_0, 0.1), (Quantization::Q4_0, 1.5)] {
            let (lm, smaller) = packed(quantization);
            let quantized = read(&smaller, "toy.gguf", &Device::Cpu).unwrap().lm;
            let worst = logits(&quantized).iter().zip(logits(&lm)).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(worst > last_worst && worst < most, "{quantization:?}: {worst}");
            assert!(smaller.len() < size, "{quantization:?}: {} bytes", smaller.len());
            (size, last_worst) = (smaller.len(), worst);
        }
    }

    #[test]
    fn what_a_language_uses_of_the_vocabulary_is_read_back_and_what_is_no_bits_is_named() {
        let (lm, _) = packed(Quantization::F32);
        let tokenizer = toy();
        let mut filter = VocabularyFilter::default();
        filter.insert("lua", vec![3, 70]);
        let vocabulary = Some(&filter);
        let contents = Contents {
            name: "toy",
            lm: &lm,
            tokenizer: &tokenizer,
            quantization: Quantization::Q8_0,
            goldens: &[],
            vocabulary,
        };
        let bytes = to_bytes(&contents).unwrap();
        let mut content = Content::read(&mut Cursor::new(&bytes)).unwrap();
        assert_eq!(read_vocabulary(&content, lm.config(), "toy.gguf").unwrap(), filter);
        for (value, named) in [
            (Value::String("x".into()), "expected an array of bytes"),
            (Value::Array(vec![Value::U8(1)]), "expected a bit for each of"),
            (Value::Array(vec![Value::String("x".into())]), "toy.gguf"),
        ] {
            content.metadata.insert("multicoder.vocabulary.lua".into(), value);
            let error = read_vocabulary(&content, lm.config(), "toy.gguf").unwrap_err().to_string();
            assert!(error.contains("toy.gguf: metadata multicoder.vocabulary.lua") && error.contains(named), "{error}");
        }
    }

    #[test]
    fn four_bits_are_for_layers_alone() {
        let (_, bytes) = packed(Quantization::Q4_0);
        let content = Content::read(&mut Cursor::new(&bytes)).unwrap();
        let dtype = |name: &str| content.tensor_infos[name].ggml_dtype;
        assert_eq!(dtype("model.embed_tokens.weight"), GgmlDType::Q8_0);
        assert_eq!(dtype("model.layers.0.self_attn.q_proj.weight"), GgmlDType::Q4_0);
        assert_eq!(dtype("model.norm.weight"), GgmlDType::F32);
    }

    #[test]
    fn superblocks_are_for_rows_that_are_whole_ones() {
        let dtype = |name: &str, cols: usize| {
            Quantization::Q4K.dtype_for(name, &Tensor::zeros((2, cols), candle_core::DType::F32, &Device::Cpu).unwrap())
        };
        assert_eq!(dtype("model.layers.0.mlp.down_proj.weight", 512), GgmlDType::Q4K);
        assert_eq!(dtype("model.layers.0.mlp.down_proj.weight", 320), GgmlDType::Q4_0);
        assert_eq!(dtype("model.embed_tokens.weight", 512), GgmlDType::Q8_0);
        assert_eq!(dtype("model.layers.0.mlp.down_proj.weight", 48), GgmlDType::F32);
    }

    #[test]
    fn a_golden_pair_holds_and_a_wrong_one_is_found() {
        let (_, bytes) = packed(Quantization::Q8_0);
        let mut bundle = read(&bytes, "toy.gguf", &Device::Cpu).unwrap();
        let golden = bundle.golden(Some("lua"), &[1, 2, 3], 4).unwrap();
        bundle.info.goldens = vec![golden.clone()];
        bundle.check_goldens().unwrap();
        bundle.info.goldens[0].max_logit += 1.0;
        assert!(bundle.check_goldens().unwrap_err().to_string().contains("golden pair 0"));
    }

    #[test]
    fn every_damage_is_found_and_named() {
        let (_, bytes) = packed(Quantization::Q8_0);
        let error = |bytes: &[u8]| read(bytes, "toy.gguf", &Device::Cpu).err().unwrap().to_string();
        for at in (8..bytes.len()).step_by(bytes.len() / 50) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            let message = error(&damaged);
            assert!(message.starts_with("toy.gguf: "), "{at}: {message}");
        }
        assert!(error(&bytes[..bytes.len() / 2]).contains("truncated"));
        assert!(error(b"PK").contains("expected it to begin with GGUF"));
    }
}
