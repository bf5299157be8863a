//! Where a layer's weights come from: fresh random values to train, or a checkpoint.
//!
//! The code that builds a layer asks for a weight by name and shape; the path of names equals the path in the checkpoint.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor, Var};

use crate::error::{Error, Result};

/// How a weight begins when it is not read from a checkpoint. This is the whole list of initial values.
#[derive(Clone, Copy, Debug)]
pub enum Init {
    Zero,
    One,
    /// Normal with this standard deviation.
    Normal(f64),
}

enum Source {
    Random {
        seed: u64,
    },
    Tensors {
        tensors: HashMap<String, Tensor>,
        origin: String,
    },
    /// Those that were asked for.
    Shapes(Vec<(String, Vec<usize>)>),
}

/// Hands out weights by name; collects the trainable ones.
pub struct Params {
    source: Source,
    trainable: bool,
    prefix: String,
    vars: Vec<(String, Var)>,
    weights: Vec<(String, Tensor)>,
    device: Device,
}

/// What a model was built of.
pub struct Built {
    /// Every weight, in the order in which they were asked for.
    pub weights: Vec<(String, Tensor)>,
    /// The trainable ones.
    pub vars: Vec<(String, Var)>,
}

impl Params {
    /// Fresh trainable weights. A weight's values depend on `seed` and its name alone.
    pub fn random(seed: u64, device: &Device) -> Params {
        let source = Source::Random { seed };
        Params::new(source, true, device)
    }

    fn new(source: Source, trainable: bool, device: &Device) -> Params {
        let (vars, weights) = (Vec::new(), Vec::new());
        Params { source, trainable, prefix: String::new(), vars, weights, device: device.clone() }
    }

    /// The weights of a checkpoint. `origin` names it in errors; only a trainable model keeps its operations for a backward pass.
    pub fn from_tensors(tensors: HashMap<String, Tensor>, origin: &str, trainable: bool, device: &Device) -> Params {
        let source = Source::Tensors { tensors, origin: origin.to_string() };
        Params::new(source, trainable, device)
    }

    /// Names and shapes without memory behind them, to plan with: a weight is one zero, seen everywhere, and what is trained is empty.
    pub(crate) fn shapes_only() -> Params {
        Params::new(Source::Shapes(Vec::new()), true, &Device::Cpu)
    }

    /// Runs `build` with `name.` before every weight's name.
    pub fn scope<T>(&mut self, name: &str, build: impl FnOnce(&mut Params) -> Result<T>) -> Result<T> {
        let length = self.prefix.len();
        self.prefix += name;
        self.prefix.push('.');
        let built = build(self);
        self.prefix.truncate(length);
        built
    }

    /// The weight `name` (below the current scope), float32.
    ///
    /// # Errors
    /// [`Error::Weight`] if the checkpoint has no such weight or one of another shape.
    pub fn get(&mut self, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
        let name = format!("{}{name}", self.prefix);
        let values = match &mut self.source {
            Source::Random { seed } => initial(*seed, &name, shape, init, &self.device)?,
            Source::Tensors { tensors, origin } => take(tensors, origin, &name, shape)?.to_device(&self.device)?,
            Source::Shapes(asked) => {
                asked.push((name.clone(), shape.to_vec()));
                self.vars.push((name, Var::zeros(0, DType::F32, &self.device)?));
                return Ok(Tensor::zeros(1, DType::F32, &self.device)?.broadcast_as(shape)?);
            }
        };
        let tensor = if self.trainable {
            let var = Var::from_tensor(&values)?;
            let tensor = var.as_tensor().clone();
            self.vars.push((name.clone(), var));
            tensor
        } else {
            values
        };
        self.weights.push((name, tensor.clone()));
        Ok(tensor)
    }

    /// Names and shapes of what was asked for, where it is to plan with.
    pub(crate) fn asked(&self) -> &[(String, Vec<usize>)] {
        match &self.source {
            Source::Shapes(asked) => asked,
            _ => &[],
        }
    }

    /// What was asked for. A checkpoint may have more only of what is `known`.
    ///
    /// # Errors
    /// [`Error::Input`] with the first weight that belongs to no layer.
    pub fn finish(self, known: &dyn Fn(&str) -> bool) -> Result<Built> {
        let unused = match &self.source {
            Source::Random { .. } | Source::Shapes(_) => None,
            Source::Tensors { tensors, .. } => tensors.keys().filter(|name| !known(name)).min(),
        };
        match unused {
            Some(name) => Err(Error::Input(format!("weight {name} belongs to no layer of the configured model"))),
            None => Ok(Built { weights: self.weights, vars: self.vars }),
        }
    }
}

fn take(tensors: &mut HashMap<String, Tensor>, origin: &str, name: &str, shape: &[usize]) -> Result<Tensor> {
    let wrong = |found: String| Error::Weight {
        origin: origin.to_string(),
        name: name.to_string(),
        expected: shape.to_vec(),
        found,
    };
    let tensor = tensors.remove(name).ok_or_else(|| wrong("none".to_string()))?;
    if tensor.dims() != shape {
        return Err(wrong(format!("{:?}", tensor.dims())));
    }
    Ok(tensor.to_dtype(DType::F32)?.contiguous()?)
}

fn initial(seed: u64, name: &str, shape: &[usize], init: Init, device: &Device) -> Result<Tensor> {
    let n: usize = shape.iter().product();
    let values = match init {
        Init::Zero => vec![0f32; n],
        Init::One => vec![1f32; n],
        Init::Normal(std) => normals(seed ^ xxhash_rust::xxh3::xxh3_64(name.as_bytes()), n, std),
    };
    Ok(Tensor::from_vec(values, shape, device)?)
}

/// `n` normal values by Box and Muller's transform of a splitmix64 stream.
fn normals(seed: u64, n: usize, std: f64) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    let mut values = Vec::with_capacity(n + 1);
    while values.len() < n {
        let radius = (-2.0 * (1.0 - uniform()).ln()).sqrt() * std;
        let angle = std::f64::consts::TAU * uniform();
        values.extend([(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]);
    }
    values.truncate(n);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_weights_depend_on_seed_and_name_alone() {
        let values = |seed, name: &str| {
            let mut params = Params::random(seed, &Device::Cpu);
            let w = params.scope("layer", |p| p.get(name, &[64, 64], Init::Normal(0.02))).unwrap();
            w.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let a = values(1, "a");
        assert_eq!(a, values(1, "a"));
        assert_ne!(a, values(2, "a"));
        assert_ne!(a, values(1, "b"));
        let std = (a.iter().map(|x| (x * x) as f64).sum::<f64>() / a.len() as f64).sqrt();
        assert!((std - 0.02).abs() < 0.001, "{std}");
    }

    #[test]
    fn a_missing_or_misshapen_weight_is_named() {
        let tensors = || HashMap::from([("w".to_string(), Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap())]);
        let get = |name: &str| {
            let mut params = Params::from_tensors(tensors(), "model.safetensors", false, &Device::Cpu);
            params.get(name, &[3, 2], Init::Zero).unwrap_err().to_string()
        };
        assert_eq!(get("w"), "model.safetensors: weight w: expected shape [3, 2], found [2, 3]");
        assert_eq!(get("v"), "model.safetensors: weight v: expected shape [3, 2], found none");
    }
}
