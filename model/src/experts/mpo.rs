//! Matrix product operators: experts share the large middle tensor of each matrix, and each has small ones around it.
//!
//! Gao et al. 2022 (MPOE, arXiv 2203.01104): `W[i1..in; j1..jn] = T1[i1,j1] T2[i2,j2] ... Tn[in,jn]`, whose bonds have
//! `D_k = min(Π_{l<=k} i_l j_l, Π_{l>k} i_l j_l)`; no bond is cut. The middle tensor, which has nearly all parameters, gets the gradients of
//! all experts, so by chance (`mask_p`) it gets none in a step: the mask that their paper has and their released code lacks. Matrices are
//! put together once a pass; a product costs what it costs in full.

use std::borrow::Cow;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{ExpertParamSpec, Experts, FeedForward, Projection};
use crate::config::{Activation, ModelConfig, MoeConfig, check};
use crate::draw::LayerDraw;
use crate::error::Result;
use crate::params::{Init, Params};

/// Options of `expert_param = { kind = "mpo", .. }`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mpo {
    /// Factors of the width of an expert, to be given.
    pub width: Vec<usize>,
    /// As many factors of the model's width.
    pub model: Vec<usize>,
    /// Chance that the shared tensors of a layer get no gradient in a step.
    pub mask_p: f64,
}

/// The tensors' shapes `[D_{k-1}, i_k, j_k, D_k]` for factors of rows and columns, and which of them is in the middle.
#[derive(Debug, PartialEq)]
struct Shape {
    tensors: Vec<[usize; 4]>,
    middle: usize,
}

impl Shape {
    fn new(rows: &[usize], columns: &[usize]) -> Shape {
        let pairs: Vec<usize> = rows.iter().zip(columns).map(|(i, j)| i * j).collect();
        let bond = |k: usize| pairs[..k].iter().product::<usize>().min(pairs[k..].iter().product());
        let tensors = (0..pairs.len()).map(|k| [bond(k), rows[k], columns[k], bond(k + 1)]);
        let tensors: Vec<[usize; 4]> = tensors.collect();
        let size = |k: &usize| tensors[*k].iter().product::<usize>();
        let middle = (0..tensors.len()).max_by_key(size).unwrap_or(0);
        Shape { tensors, middle }
    }

    /// How a tensor begins, so that the matrix has the deviation `std`: sums over a bond keep the variance.
    fn init(&self, k: usize, std: f64) -> Init {
        let [left, _, _, right] = self.tensors[k];
        Init::Normal(match k.cmp(&self.middle) {
            std::cmp::Ordering::Less => 1.0 / (right as f64).sqrt(),
            std::cmp::Ordering::Equal => std,
            std::cmp::Ordering::Greater => 1.0 / (left as f64).sqrt(),
        })
    }

    fn n_parameters(&self, n_experts: usize) -> usize {
        let size = |k: usize| self.tensors[k].iter().product::<usize>();
        (0..self.tensors.len()).map(|k| if k == self.middle { size(k) } else { n_experts * size(k) }).sum()
    }

    /// The tensors of a matrix, without a rounding: no bond is cut, so that with unit matrices around it the middle tensor is the matrix
    /// itself in another order. (Gao et al. take it apart by singular values, which moves rotations into the small ones.)
    fn take_apart(&self, w: &Tensor) -> Result<Vec<Tensor>> {
        let (mut rows, mut columns) = w.dims2()?;
        let mut apart = w.clone();
        // i1 i2 ... j1 j2 ... -> i1 j1 i2 j2 ..., the reverse of what `contract` ends with.
        for [_, i, j, _] in self.tensors.iter().rev() {
            (rows, columns) = (rows / i, columns / j);
            apart = apart.reshape((rows, *i, columns, ()))?.transpose(1, 2)?.contiguous()?;
        }
        let unit = |[left, i, j, right]: [usize; 4]| {
            Tensor::eye(left.max(right), w.dtype(), w.device())?.reshape(&[left, i, j, right])
        };
        let tensor = |k: usize| match k == self.middle {
            true => Ok(apart.reshape(&self.tensors[k])?),
            false => Ok(unit(self.tensors[k])?),
        };
        (0..self.tensors.len()).map(tensor).collect()
    }

    /// The matrix of these tensors. Shape: `[Π i, Π j]`.
    fn contract(&self, tensors: &[Tensor]) -> Result<Tensor> {
        // The small ones on either side first, and the large one last.
        let chain = |range: std::ops::Range<usize>| -> Result<Option<Tensor>> {
            let flat = |k: usize| -> Result<(Tensor, usize)> {
                let [left, i, j, right] = self.tensors[k];
                Ok((tensors[k].reshape((left, i * j * right))?, right))
            };
            let mut all: Option<(Tensor, usize)> = None;
            for k in range {
                let (next, right) = flat(k)?;
                all = Some(match all {
                    None => (next, right),
                    Some((sum, bond)) => (sum.reshape(((), bond))?.matmul(&next)?, right),
                });
            }
            Ok(all.map(|(sum, _)| sum))
        };
        let (n, middle) = (self.tensors.len(), self.middle);
        let [left, i, j, right] = self.tensors[middle];
        let mut w = tensors[middle].reshape((left, i * j * right))?;
        if let Some(before) = chain(0..middle)? {
            w = before.reshape(((), left))?.matmul(&w)?;
        }
        if let Some(after) = chain(middle + 1..n)? {
            w = w.reshape(((), right))?.matmul(&after.reshape((right, ()))?)?;
        }
        // i1 j1 i2 j2 ... -> i1 i2 ... j1 j2 ..., one pair at a time: the tensor library takes no tensor of ten dimensions.
        let (mut rows, mut columns) = (1, 1);
        for [_, i, j, _] in &self.tensors {
            w = w.reshape((rows, columns, *i, ()))?.transpose(1, 2)?.contiguous()?;
            (rows, columns) = (rows * i, columns * j);
        }
        Ok(w.reshape((rows, columns))?)
    }
}

impl ExpertParamSpec for Mpo {
    const NAME: &'static str = "mpo";
    const PAPER: &'static str = "Gao et al. 2022, arXiv 2203.01104";
    const PARAMETERS: &'static str = "the middle tensor (D·F or little less), and E times the small ones";

    fn is_plain(&self) -> bool {
        false
    }

    fn build(&self, model: &ModelConfig, moe: &MoeConfig, params: &mut Params) -> Result<Box<dyn Experts>> {
        let mut matrices = Vec::new();
        let (mut shared, mut own) = (Vec::new(), Vec::new());
        for (name, rows_columns, std) in self.projections(model, moe) {
            let shape = Shape::new(rows_columns.0, rows_columns.1);
            let mut tensor = |owner: &str, k: usize| {
                params.get(&format!("experts.{owner}.{name}.{k}"), &shape.tensors[k], shape.init(k, std))
            };
            shared.push(tensor("shared", shape.middle)?);
            let others = |e: usize| (0..shape.tensors.len()).filter(|&k| k != shape.middle).map(move |k| (e, k));
            let of_expert = |e: usize| others(e).map(|(e, k)| tensor(&e.to_string(), k)).collect::<Result<Vec<_>>>();
            own.push((0..moe.n_experts).map(of_expert).collect::<Result<Vec<_>>>()?);
            matrices.push((name, shape));
        }
        let (model, width) = (model.clone(), moe.d_ff_expert);
        Ok(Box::new(MpoExperts { model, width, matrices, shared, own, mask_p: self.mask_p }))
    }

    fn validate(&self, model: &ModelConfig, moe: &MoeConfig) -> Result<()> {
        let is = |factors: &[usize], width: usize| {
            factors.iter().try_fold(1usize, |product, factor| product.checked_mul(*factor)) == Some(width)
        };
        let (width, d) = (moe.d_ff_expert, model.d_model);
        let expected = format!("factors of d_ff_expert = {width}");
        check(is(&self.width, width), "moe.expert_param.width", format!("{:?}", self.width), &expected)?;
        let expected = format!("{} factors of d_model = {d}", self.width.len());
        let fits = is(&self.model, d) && self.model.len() == self.width.len();
        check(fits, "moe.expert_param.model", format!("{:?}", self.model), &expected)?;
        check((0.0..1.0).contains(&self.mask_p), "moe.expert_param.mask_p", self.mask_p, "0 or more, below 1")
    }

    fn copies(&self, moe: &MoeConfig, projection: &str, w: &Tensor) -> Result<Vec<(String, Tensor)>> {
        let (rows, columns) = match projection {
            "down_proj" => (&self.model, &self.width),
            _ => (&self.width, &self.model),
        };
        let shape = Shape::new(rows, columns);
        if w.dims() != [rows, columns].map(|factors| factors.iter().product::<usize>()) {
            return Ok(Vec::new());
        }
        let mut copies = Vec::new();
        for (k, tensor) in shape.take_apart(w)?.into_iter().enumerate() {
            if k == shape.middle {
                copies.push((format!("experts.shared.{projection}.{k}"), tensor));
                continue;
            }
            copies.extend((0..moe.n_experts).map(|e| (format!("experts.{e}.{projection}.{k}"), tensor.clone())));
        }
        Ok(copies)
    }

    fn n_parameters(&self, model: &ModelConfig, moe: &MoeConfig) -> usize {
        let shapes = self.projections(model, moe).into_iter().map(|(_, (rows, columns), _)| Shape::new(rows, columns));
        shapes.map(|shape| shape.n_parameters(moe.n_experts)).sum()
    }
}

/// Name, factors of rows and of columns, and first deviation of a matrix of a network.
type Matrix<'a> = (&'static str, (&'a [usize], &'a [usize]), f64);

impl Mpo {
    /// The matrices of a network.
    fn projections(&self, model: &ModelConfig, moe: &MoeConfig) -> Vec<Matrix<'_>> {
        let std = |init: Init| if let Init::Normal(std) = init { std } else { 0.0 };
        let inner = 1.0 / (model.d_model as f64).sqrt();
        let outer = std(super::output_init(model, moe.d_ff_expert));
        let mut all = vec![
            ("up_proj", (&self.width[..], &self.model[..]), inner),
            ("down_proj", (&self.model[..], &self.width[..]), outer),
        ];
        if model.activation == Activation::Swiglu {
            all.insert(0, ("gate_proj", (&self.width, &self.model), inner));
        }
        all
    }
}

/// By matrix, and then by expert.
#[derive(Debug)]
struct MpoExperts {
    model: ModelConfig,
    width: usize,
    matrices: Vec<(&'static str, Shape)>,
    shared: Vec<Tensor>,
    /// Without the middle one.
    own: Vec<Vec<Vec<Tensor>>>,
    mask_p: f64,
}

impl Experts for MpoExperts {
    fn networks(&self, draw: Option<LayerDraw>) -> Result<Cow<'_, [FeedForward]>> {
        let masks = draw.is_some_and(|draw| draw.stream("mpo mask").layer() < self.mask_p as f32);
        let network = |e: usize| {
            FeedForward::of(&self.model, self.width, &mut |(name, ..): Projection| {
                let place = self.matrices.iter().position(|(known, _)| *known == name).unwrap_or(0);
                let shared = &self.shared[place];
                let mut tensors = self.own[place][e].clone();
                let shape = &self.matrices[place].1;
                tensors.insert(shape.middle, if masks { shared.detach() } else { shared.clone() });
                shape.contract(&tensors)
            })
        };
        let n_experts = self.own.first().map_or(0, Vec::len);
        Ok(Cow::Owned((0..n_experts).map(network).collect::<Result<_>>()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::values;
    use candle_core::Device;
    use std::collections::{BTreeMap, HashMap};

    #[test]
    fn bonds_are_the_least_that_cut_nothing() {
        // T5-large's shape in their released code: bonds 1-12-192-384-16-1 for 3072 x 768.
        let shape = Shape::new(&[4, 4, 8, 6, 4], &[3, 4, 4, 4, 4]);
        let bonds: Vec<usize> = shape.tensors.iter().map(|tensor| tensor[3]).collect();
        assert_eq!((bonds, shape.middle), (vec![12, 192, 384, 16, 1], 2));
        // The middle one has as many parameters as the matrix, the others 7.8 % as many.
        assert_eq!(shape.tensors[2].iter().product::<usize>(), 3072 * 768);
        assert_eq!(shape.n_parameters(1) - 3072 * 768, 184_720);
    }

    #[test]
    fn tensors_multiply_as_the_formula_says() {
        let (rows, columns) = ([2, 3, 2], [3, 2, 2]);
        let shape = Shape::new(&rows, &columns);
        let tensors: Vec<Tensor> = shape.tensors.iter().zip(0..).map(|(dims, seed)| values(dims, seed)).collect();
        let w = shape.contract(&tensors).unwrap().to_vec2::<f32>().unwrap();
        let host: Vec<Vec<f32>> =
            tensors.iter().map(|tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect();
        for (row, w) in w.iter().enumerate() {
            for (column, w) in w.iter().enumerate() {
                let i = [row / 6, row / 2 % 3, row % 2];
                let j = [column / 4, column / 2 % 2, column % 2];
                let mut sums = vec![1f32];
                for k in 0..3 {
                    let [left, _, columns, right] = shape.tensors[k];
                    let at = |a: usize, b: usize| host[k][((a * rows[k] + i[k]) * columns + j[k]) * right + b];
                    sums = (0..right).map(|b| (0..left).map(|a| sums[a] * at(a, b)).sum()).collect();
                }
                assert!((w - sums[0]).abs() < 1e-4, "row {row}, column {column}: {w}, not {}", sums[0]);
            }
        }
    }

    #[test]
    fn a_matrix_is_taken_apart_and_put_together() {
        for (rows, columns) in
            [(vec![2, 4, 2], vec![2, 4, 2]), (vec![2, 2, 4, 3, 2], vec![3, 2, 2, 2, 1]), (vec![6], vec![5])]
        {
            let shape = Shape::new(&rows, &columns);
            let w = values(&[rows.iter().product(), columns.iter().product()], 5);
            let again = shape.contract(&shape.take_apart(&w).unwrap()).unwrap();
            assert_eq!(again.to_vec2::<f32>().unwrap(), w.to_vec2::<f32>().unwrap(), "{rows:?} x {columns:?}");
        }
    }

    fn model_of_mpo(mask_p: f64) -> (ModelConfig, Mpo) {
        let mut config = crate::config::tests::tiny(Some(serde_json::from_str(r#"{"kind": "token"}"#).unwrap()));
        let mpo = Mpo { width: vec![2, 4, 2], model: vec![2, 4, 4], mask_p };
        config.moe.as_mut().unwrap().expert_param = crate::experts::ExpertParam::Mpo(mpo.clone());
        (config, mpo)
    }

    #[test]
    fn copies_of_a_dense_network_have_its_matrices() {
        let (config, mpo) = model_of_mpo(0.0);
        let moe = config.moe.as_ref().unwrap();
        let dense: BTreeMap<&str, Tensor> = [("gate_proj", [16, 32]), ("up_proj", [16, 32]), ("down_proj", [32, 16])]
            .map(|(name, dims)| (name, values(&dims, dims[0] as u32)))
            .into();
        let mut tensors = HashMap::new();
        for (name, w) in &dense {
            tensors.extend(mpo.copies(moe, name, w).unwrap());
        }
        let mut params = Params::from_tensors(tensors, "copies", false, &Device::Cpu);
        let experts = mpo.build(&config, moe, &mut params).unwrap();
        let networks = experts.networks(None).unwrap();
        assert_eq!(networks.len(), moe.n_experts);
        for (name, w) in networks.iter().flat_map(FeedForward::weights) {
            assert_eq!(w.to_vec2::<f32>().unwrap(), dense[name].to_vec2::<f32>().unwrap(), "{name}");
        }
        assert!(mpo.copies(moe, "up_proj", &values(&[16, 31], 1)).unwrap().is_empty(), "another width");
    }

    /// The mask that the paper has and its released code lacks.
    #[test]
    fn in_masked_steps_shared_tensors_have_no_gradient_and_own_ones_have() {
        let gradients = |mask_p: f64| {
            let (config, _) = model_of_mpo(mask_p);
            let lm = crate::CodeLm::init(&config, 3, &Device::Cpu).unwrap();
            let draw = crate::StepKey { seed: 1, step: 2 };
            let tensor =
                |from: u32| Tensor::from_vec((from..from + 8).collect::<Vec<u32>>(), (1, 8), &Device::Cpu).unwrap();
            let batch = crate::Batch {
                x_BL: tensor(1),
                y_BL: tensor(2),
                language_BL: vec![0; 8],
                start_BL: None,
                training: Some(draw),
            };
            let gradients = lm.loss(&batch, 8.0).unwrap().loss.backward().unwrap();
            let of = |part: &str| {
                let named = lm.parameters().iter().filter(|(name, _)| name.contains(part));
                named.filter(|(_, var)| gradients.get(var).is_some()).count()
            };
            (of("experts.shared."), of("experts.0.") + of("experts.1.") + of("experts.2.") + of("experts.3."))
        };
        let (masked, open) = (gradients(1.0 - 1e-9), gradients(0.0));
        assert_eq!((masked.0, open.0), (0, 3));
        assert!(masked.1 > 0 && masked.1 == open.1, "{masked:?} {open:?}");
    }
}
