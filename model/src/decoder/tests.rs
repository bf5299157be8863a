//! Kernels against each other, bit for bit, and against the tensor library.

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module, Tensor};

use super::*;
use crate::ops::tests::values;

const FORMATS: [Format; 5] = [Format::Q8, Format::Q4, Format::Q4Least, Format::F16, Format::F32];

fn numbers(n: usize, seed: u32) -> Vec<f32> {
    values(&[n], seed).to_vec1().unwrap()
}

/// Weights of a format; those of Q4_K need whole superblocks.
fn weights(format: Format, (rows, cols): (usize, usize), seed: u32) -> Packed {
    let w = numbers(rows * cols, seed);
    if format != Format::Q4Least {
        return Packed::from_floats(format, &w, cols).unwrap();
    }
    let blocks = quantized_by_candle(&w, (rows, cols), GgmlDType::Q4K);
    Packed::from_blocks(format, &blocks.data().unwrap(), (rows, cols)).unwrap()
}

fn quantized_by_candle(w: &[f32], shape: (usize, usize), dtype: GgmlDType) -> QTensor {
    QTensor::quantize(&Tensor::from_slice(w, shape, &Device::Cpu).unwrap(), dtype).unwrap()
}

fn activations(n: usize, cols: usize, seed: u32) -> (Vec<f32>, Quantized) {
    let x = numbers(n * cols, seed);
    let mut quantized = Quantized::default();
    quantized.resize(n, cols);
    x.chunks_exact(cols).enumerate().for_each(|(row, x)| quantized.set(row, x));
    (x, quantized)
}

/// All products, row by row of the activations.
fn product(w: &Packed, x: &Quantized, n_outputs: usize, simd: Simd) -> Vec<f32> {
    let (n, tiles) = (x.n_rows(), w.n_tiles());
    let mut by_tile = vec![f32::NAN; tiles * n * ROWS];
    multiply(w, x, 0..tiles, &mut by_tile, simd);
    let output = |i: usize| by_tile[(i % n_outputs / ROWS * n + i / n_outputs) * ROWS + i % n_outputs % ROWS];
    (0..n * n_outputs).map(output).collect()
}

fn shapes(format: Format) -> Vec<(usize, usize)> {
    match format {
        Format::Q4Least => vec![(1, 256), (16, 256), (37, 768), (64, 512)],
        _ => vec![(1, 1), (16, 32), (3, 7), (17, 33), (48, 96), (37, 200), (64, 512)],
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits_however_many_rows_come_together() {
    for format in FORMATS {
        for (rows, cols) in shapes(format) {
            let w = weights(format, (rows, cols), 1);
            for n in [1, 2, 3, 5, 8, 15] {
                let (_, x) = activations(n, cols, 2);
                let expected = product(&w, &x, rows, Simd::Scalar);
                assert!(expected.iter().all(|y| y.is_finite()), "{format:?} {rows} x {cols}");
                for simd in Simd::all() {
                    let got = product(&w, &x, rows, simd);
                    let differs = got.iter().zip(&expected).position(|(a, b)| a.to_bits() != b.to_bits());
                    assert!(differs.is_none(), "{format:?} {rows} x {cols}, {n} rows, {simd:?}: output {differs:?}");
                }
            }
        }
    }
}

#[test]
fn products_are_those_of_the_tensor_library() {
    for (format, dtype) in
        [(Format::Q8, GgmlDType::Q8_0), (Format::Q4, GgmlDType::Q4_0), (Format::Q4Least, GgmlDType::Q4K)]
    {
        for (rows, cols) in [(16, 256), (37, 768), (130, 512)] {
            let quantized = quantized_by_candle(&numbers(rows * cols, 3), (rows, cols), dtype);
            let w = Packed::from_blocks(format, &quantized.data().unwrap(), (rows, cols)).unwrap();
            let floats = quantized.dequantize(&Device::Cpu).unwrap();
            let (x, packed_x) = activations(3, cols, 4);
            let x = Tensor::from_vec(x, (3, cols), &Device::Cpu).unwrap();
            let exact = x.matmul(&floats.t().unwrap()).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let theirs = QMatMul::from_qtensor(quantized).unwrap().forward(&x).unwrap();
            let theirs = theirs.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let got = product(&w, &packed_x, rows, Simd::best());
            let largest = exact.iter().fold(0f32, |largest, y| largest.max(y.abs()));
            let most = |a: &[f32]| a.iter().zip(&exact).fold(0f32, |most, (a, b)| most.max((a - b).abs())) / largest;
            // Both round activations to eight bits; ours is no further from the product of floats than theirs.
            let (ours, theirs) = (most(&got), most(&theirs));
            assert!(ours < 0.01 && ours < 1.5 * theirs + 1e-3, "{format:?} {rows} x {cols}: {ours}, theirs {theirs}");
        }
    }
}

#[test]
fn floats_are_multiplied_as_floats() {
    for (format, tolerance) in [(Format::F32, 1e-5), (Format::F16, 1e-3)] {
        let (rows, cols) = (37, 200);
        let w = numbers(rows * cols, 5);
        let packed = Packed::from_floats(format, &w, cols).unwrap();
        let (x, quantized) = activations(2, cols, 6);
        let got = product(&packed, &quantized, rows, Simd::best());
        for (i, got) in got.iter().enumerate() {
            let (x, w) = (&x[i / rows * cols..][..cols], &w[i % rows * cols..][..cols]);
            let expected: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            assert!((f64::from(*got) - expected).abs() < tolerance * 10.0, "{format:?}: {got}, not {expected}");
        }
    }
}

#[test]
fn rounding_is_that_of_the_tensor_library() {
    let (rows, cols) = (20, 64);
    let w = numbers(rows * cols, 7);
    for (format, dtype) in [(Format::Q8, GgmlDType::Q8_0), (Format::Q4, GgmlDType::Q4_0)] {
        let ours = Packed::from_floats(format, &w, cols).unwrap();
        let blocks = quantized_by_candle(&w, (rows, cols), dtype);
        let theirs = Packed::from_blocks(format, &blocks.data().unwrap(), (rows, cols)).unwrap();
        let (_, x) = activations(1, cols, 8);
        let (a, b) = (product(&ours, &x, rows, Simd::best()), product(&theirs, &x, rows, Simd::best()));
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-2), "{format:?}: {a:?} {b:?}");
    }
}

#[test]
fn wrong_bytes_and_columns_are_named() {
    let error = |result: crate::Result<Packed>| result.unwrap_err().to_string();
    let short = error(Packed::from_blocks(Format::Q8, &[0; 33], (1, 32)));
    assert!(short.contains("bytes of blocks = 33: expected 34"), "{short}");
    let odd = error(Packed::from_blocks(Format::Q4Least, &[], (1, 100)));
    assert!(odd.contains("columns = 100: expected a multiple of 256"), "{odd}");
    assert!(error(Packed::from_floats(Format::Q8, &[0.0; 5], 2)).contains("weight = 5: expected rows of 2"));
    let blocks = error(Packed::from_blocks(Format::F32, &[], (1, 32)));
    assert!(blocks.contains("expected Q8_0, Q4_0 or Q4_K"), "{blocks}");
}
