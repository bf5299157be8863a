//! TensorBoard event files: TFRecord frames (length, masked CRC-32C, payload, masked CRC-32C) of `Event` messages, scalars only.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

/// Writes one event file.
pub struct EventWriter {
    path: PathBuf,
    file: BufWriter<File>,
}

impl EventWriter {
    /// Creates `folder/events.out.tfevents.<microseconds>.multicoder`.
    ///
    /// # Errors
    /// A folder or file that cannot be written.
    pub fn create(folder: &Path) -> Result<EventWriter> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let path = folder.join(format!("events.out.tfevents.{}.multicoder", (now_s() * 1e6) as u64));
        let file = File::create(&path).with_context(|| path.display().to_string())?;
        let mut writer = EventWriter { path, file: BufWriter::new(file) };
        writer.write(&event(0, Field::Bytes(3, b"brain.Event:2".to_vec())))?;
        Ok(writer)
    }

    /// Adds one point of the curve `tag`.
    pub fn scalar(&mut self, tag: &str, step: u64, value: f32) -> Result<()> {
        let value = message(&[Field::Bytes(1, tag.as_bytes().to_vec()), Field::F32(2, value)]);
        let summary = message(&[Field::Bytes(1, value)]);
        self.write(&event(step, Field::Bytes(5, summary)))
    }

    /// Hands buffered points to the operating system.
    pub fn flush(&mut self) -> Result<()> {
        self.file.flush().with_context(|| self.path.display().to_string())
    }

    fn write(&mut self, payload: &[u8]) -> Result<()> {
        self.file.write_all(&record(payload)).with_context(|| self.path.display().to_string())
    }
}

/// A protobuf field: number and value.
enum Field {
    F64(u8, f64),
    F32(u8, f32),
    Int(u8, u64),
    Bytes(u8, Vec<u8>),
}

/// `Event { wall_time = 1, step = 2, what }`.
fn event(step: u64, what: Field) -> Vec<u8> {
    message(&[Field::F64(1, now_s()), Field::Int(2, step), what])
}

fn message(fields: &[Field]) -> Vec<u8> {
    let mut out = Vec::new();
    for field in fields {
        match field {
            Field::F64(number, value) => {
                out.push(number << 3 | 1);
                out.extend(value.to_le_bytes());
            }
            Field::F32(number, value) => {
                out.push(number << 3 | 5);
                out.extend(value.to_le_bytes());
            }
            Field::Int(number, value) => {
                out.push(number << 3);
                varint(*value, &mut out);
            }
            Field::Bytes(number, value) => {
                out.push(number << 3 | 2);
                varint(value.len() as u64, &mut out);
                out.extend(value);
            }
        }
    }
    out
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn record(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let mut out = length.to_vec();
    out.extend(masked_crc(&length).to_le_bytes());
    out.extend(payload);
    out.extend(masked_crc(payload).to_le_bytes());
    out
}

/// CRC-32C, rotated and offset so that a CRC of data that holds CRCs stays meaningful (the TFRecord rule).
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32 with the Castagnoli polynomial, bit by bit: records are a hundred bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_equals_the_published_check_value() {
        // RFC 3720, B.4, and the usual "123456789".
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn a_scalar_has_the_documented_bytes() {
        let value = message(&[Field::Bytes(1, b"a".to_vec()), Field::F32(2, 1.5)]);
        assert_eq!(value, [0x0a, 1, b'a', 0x15, 0, 0, 0xc0, 0x3f]);
        let mut out = Vec::new();
        varint(300, &mut out);
        assert_eq!(out, [0xac, 0x02]);
    }

    #[test]
    fn a_file_is_a_chain_of_whole_records() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(dir.path()).unwrap();
        for step in 0..5 {
            writer.scalar("train/loss", step, step as f32).unwrap();
        }
        writer.flush().unwrap();
        let bytes = fs::read(&writer.path).unwrap();
        let (mut at, mut n_records) = (0, 0);
        while at < bytes.len() {
            let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            let payload = &bytes[at + 12..at + 12 + length];
            let crc = u32::from_le_bytes(bytes[at + 12 + length..at + 16 + length].try_into().unwrap());
            assert_eq!(crc, masked_crc(payload));
            (at, n_records) = (at + 16 + length, n_records + 1);
        }
        assert_eq!(n_records, 6);
    }
}
