//! Weights from elsewhere into a model that is about to train.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{Device, Tensor, Var};
use multicoder_model::CodeLm;

/// Sets every parameter from the tensor of its name.
///
/// # Errors
/// A parameter whose tensor is missing or has another shape, named; tensors beyond the model's.
pub fn set_all(lm: &CodeLm, tensors: &HashMap<String, Tensor>) -> Result<()> {
    for (name, parameter) in lm.parameters() {
        let tensor = tensors.get(name).with_context(|| format!("weight {name} is missing"))?;
        ensure!(
            tensor.dims() == parameter.dims(),
            "weight {name}: shape {:?}, the configuration says {:?}",
            tensor.dims(),
            parameter.dims()
        );
        parameter.set(tensor).with_context(|| name.clone())?;
    }
    let (got, expected) = (tensors.len(), lm.parameters().len());
    ensure!(got == expected, "{got} weights, the configured model has {expected}");
    Ok(())
}

/// Sets the parameters for which the model at `path` (GGUF file or folder) has a tensor of the same name and shape, and says which
/// were left at their initial values.
///
/// # Errors
/// An unreadable model, or one with nothing in common.
pub fn warm_start(lm: &CodeLm, path: &Path) -> Result<String> {
    let source = if path.is_dir() {
        multicoder_model::checkpoint::load_lm(path, true, &Device::Cpu)?
    } else {
        let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
        multicoder_model::gguf::read_as(&bytes, &path.display().to_string(), true, &Device::Cpu)?.lm
    };
    let theirs: HashMap<&str, &Var> = source.parameters().iter().map(|(name, var)| (name.as_str(), var)).collect();
    let (mut n_taken, mut left) = (0, Vec::new());
    for (name, parameter) in lm.parameters() {
        match theirs.get(name.as_str()).filter(|tensor| tensor.dims() == parameter.dims()) {
            Some(tensor) => {
                parameter.set(&tensor.to_device(parameter.device())?)?;
                n_taken += 1;
            }
            None => left.push(name.as_str()),
        }
    }
    if n_taken == 0 {
        bail!("{}: no weight has the name and shape of one of this model's", path.display());
    }
    let rest = if left.is_empty() { String::new() } else { format!("; initial values: {}", left.join(", ")) };
    Ok(format!("{n_taken} weights taken from {}{rest}", path.display()))
}
