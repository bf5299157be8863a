//! The functions that the plans call, over `minhash` and `duplicates`. The machines of a cluster know a function by its name alone:
//! scheduler and executors must have been given these.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, BinaryArray, Float64Array, ListBuilder, StringArray, UInt64Builder};
use datafusion::arrow::datatypes::{DataType, Field};
use datafusion::common::cast::{as_binary_view_array, as_string_view_array};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility};
use datafusion::prelude::create_udf;

use super::PlanResult;
use crate::corpus::duplicates;
use crate::corpus::minhash::{N_HASHES, Signature};

/// All of them, to register.
pub fn functions() -> Vec<ScalarUDF> {
    vec![text_hash(), document_rank(), minhash(), minhash_bands(), minhash_similarity()]
}

/// `text_hash(text) -> text`: equal for exact duplicates.
pub(super) fn text_hash() -> ScalarUDF {
    function("text_hash", &[DataType::Utf8View], DataType::Utf8, |columns| {
        let texts = as_string_view_array(&columns[0])?;
        Ok(Arc::new(texts.iter().map(|text| text.map(duplicates::text_hash)).collect::<StringArray>()))
    })
}

/// `document_rank(split, package, path, language, hash) -> text`: the least stays.
pub(super) fn document_rank() -> ScalarUDF {
    function("document_rank", &[const { DataType::Utf8View }; 5], DataType::Utf8, |columns| {
        let columns: Vec<_> = columns.iter().map(|column| as_string_view_array(column)).collect::<PlanResult<_>>()?;
        let rank = |row: usize| {
            let [split, package, path, language, hash] = std::array::from_fn(|idx| columns[idx].value(row));
            duplicates::rank(split, package, path, language, hash)
        };
        Ok(Arc::new(StringArray::from_iter_values((0..columns[0].len()).map(rank))))
    })
}

/// `minhash(text) -> bytes`: the signature.
pub(super) fn minhash() -> ScalarUDF {
    function("minhash", &[DataType::Utf8View], DataType::Binary, |columns| {
        let texts = as_string_view_array(&columns[0])?;
        let signature = |text: Option<&str>| text.map(|text| Signature::of(text).to_bytes());
        Ok(Arc::new(texts.iter().map(signature).collect::<BinaryArray>()))
    })
}

/// `minhash_bands(signature) -> list of whole numbers`: one hash a band.
pub(super) fn minhash_bands() -> ScalarUDF {
    let list = DataType::List(Arc::new(Field::new_list_field(DataType::UInt64, true)));
    function("minhash_bands", &[DataType::BinaryView], list, |columns| {
        let mut lists = ListBuilder::new(UInt64Builder::new());
        for bytes in as_binary_view_array(&columns[0])? {
            let signature = bytes.map(signature).transpose()?;
            lists.append_option(signature.map(|signature| signature.bands().map(Some)));
        }
        Ok(Arc::new(lists.finish()))
    })
}

/// `minhash_similarity(signature, signature) -> number`: estimated Jaccard similarity, `0..=1`.
pub(super) fn minhash_similarity() -> ScalarUDF {
    function("minhash_similarity", &[DataType::BinaryView, DataType::BinaryView], DataType::Float64, |columns| {
        let (a, b) = (as_binary_view_array(&columns[0])?, as_binary_view_array(&columns[1])?);
        let similarity = |(a, b): (Option<&[u8]>, Option<&[u8]>)| match (a, b) {
            (Some(a), Some(b)) => Ok(Some(signature(a)?.similarity(&signature(b)?))),
            _ => Ok(None),
        };
        Ok(Arc::new(a.iter().zip(b).map(similarity).collect::<PlanResult<Float64Array>>()?))
    })
}

fn signature(bytes: &[u8]) -> PlanResult<Signature> {
    Signature::from_bytes(bytes).ok_or_else(|| {
        DataFusionError::Execution(format!("signature of {} bytes: expected {}", bytes.len(), 4 * N_HASHES))
    })
}

/// A function of whole columns.
fn function(
    name: &str,
    arguments: &[DataType],
    result: DataType,
    of_columns: fn(&[ArrayRef]) -> PlanResult<ArrayRef>,
) -> ScalarUDF {
    let body = move |values: &[ColumnarValue]| {
        Ok(ColumnarValue::Array(of_columns(&ColumnarValue::values_to_arrays(values)?)?))
    };
    create_udf(name, arguments.to_vec(), result, Volatility::Immutable, Arc::new(body))
}
