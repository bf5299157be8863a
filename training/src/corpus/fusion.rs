//! Near-duplicate removal as plans of DataFusion: what `dedup` does in the memory of one machine, where a corpus outgrows it.
//!
//! The plans know nothing of the machine that runs them: given the context of a Ballista cluster, the cluster does. Two plans, with a
//! Parquet table between them so that no signature is computed twice, and a union-find over the pairs that resemble each other, on
//! the machine that asks: there are as many of them as there are duplicates, not documents.
//!
//! 1. documents → one row a text: hash, least rank, number of rows, signature. A text never leaves the machine that reads it.
//! 2. signatures → 25 bands each → pairs that share one, without repetitions → those of similarity 0.7 or more.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use datafusion::arrow::array::{Array, RecordBatch};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::common::cast::as_string_view_array;
use datafusion::dataframe::{DataFrame, DataFrameWriteOptions};
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::functions_aggregate::expr_fn::{count, min};
use datafusion::logical_expr::{Expr, JoinType, ScalarUDF};
use datafusion::prelude::{ParquetReadOptions, SessionContext, col, lit};
use futures::TryStreamExt;

use super::dedup::Clusters;
use super::duplicates::{Duplicates, hash_of, shards_of};
use super::minhash::{N_BANDS, THRESHOLD};
use super::{Error, Result};

mod functions;

pub use functions::functions;
use functions::{document_rank, minhash, minhash_bands, minhash_similarity, text_hash};

type PlanResult<T> = std::result::Result<T, DataFusionError>;

impl From<DataFusionError> for Error {
    fn from(error: DataFusionError) -> Self {
        Error::Plan(error.to_string())
    }
}

/// Finds the duplicates in the shards of `dirs` on the cores of this machine; `work` is a folder for the table between the plans.
///
/// # Errors
/// Missing or broken shards, a `work` that cannot be written, a plan that fails.
pub fn find_here(dirs: &[PathBuf], work: &Path) -> Result<Duplicates> {
    let text =
        |path: &Path| path.to_str().map(str::to_owned).ok_or_else(|| Error::format(path, "expected a path in UTF-8"));
    let paths = shards_of(dirs)?.into_iter().flat_map(|(_, paths)| paths);
    let paths: Vec<String> = paths.map(|path| text(&path)).collect::<Result<_>>()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().build().map_err(Error::io(work))?;
    runtime.block_on(find(&SessionContext::new(), paths, &text(work)?))
}

/// Finds the duplicates in the Parquet files at `paths` (files, or folders with a slash at their end) with the machines behind `context`.
/// All of them must reach the files and `work`, a folder for the table between the plans; a cluster must have been given [`functions`].
///
/// # Errors
/// A column that is absent, a folder that cannot be read or written, a plan that fails.
pub async fn find(context: &SessionContext, paths: Vec<String>, work: &str) -> Result<Duplicates> {
    let documents = context.read_parquet(paths, ParquetReadOptions::default()).await?;
    let table = format!("{}/signatures/", work.trim_end_matches('/'));
    signatures(documents)?.write_parquet(&table, DataFrameWriteOptions::new(), None).await?;
    let signatures = context.read_parquet(table, ParquetReadOptions::default()).await?;
    let first = firsts(signatures.clone())?.execute_stream().await?;
    let pairs = similar_pairs(signatures)?.execute_stream().await?;
    Ok(Duplicates { first: first_ranks(first).await?, near: clusters(pairs).await? })
}

/// The first plan: a row for each text.
fn signatures(documents: DataFrame) -> PlanResult<DataFrame> {
    let hash = of(text_hash(), &["text"]).alias("hash");
    let signature = of(minhash(), &["text"]).alias("signature");
    let marks = documents.select(vec![col("split"), col("package"), col("path"), col("language"), hash, signature])?;
    let rank = of(document_rank(), &["split", "package", "path", "language", "hash"]).alias("rank");
    let marks = marks.select(vec![col("hash"), rank, col("signature")])?;
    // Rows of one text have one signature: the least is any of them.
    let signature = min(col("signature")).alias("signature");
    marks.aggregate(vec![col("hash")], vec![min(col("rank")).alias("rank"), count(lit(1)).alias("n_rows"), signature])
}

/// A function of columns.
fn of(function: ScalarUDF, columns: &[&str]) -> Expr {
    function.call(columns.iter().copied().map(col).collect())
}

/// Ranks of the first rows of texts that have several.
fn firsts(signatures: DataFrame) -> PlanResult<DataFrame> {
    signatures.filter(col("n_rows").gt(lit(1)))?.select(vec![col("rank")])
}

/// The second plan: ranks of the pairs of texts that share a band and resemble each other.
fn similar_pairs(signatures: DataFrame) -> PlanResult<DataFrame> {
    let bands = bands(signatures.clone())?;
    let side =
        |name: &str| bands.clone().select(["hash", "band_idx", "band"].map(|column| named(name, column)).to_vec());
    let a_before_b = col("a_hash").lt(col("b_hash"));
    let (a, b) = (["a_band_idx", "a_band"], ["b_band_idx", "b_band"]);
    let pairs = side("a")?.join(side("b")?, JoinType::Inner, &a, &b, Some(a_before_b))?;
    let pairs = pairs.select(vec![col("a_hash").alias("a"), col("b_hash").alias("b")])?.distinct()?;
    let with = |pairs: DataFrame, name: &str| {
        let columns = ["hash", "rank", "signature"].map(|column| named(name, column)).to_vec();
        pairs.join(signatures.clone().select(columns)?, JoinType::Inner, &[name], &[&format!("{name}_hash")], None)
    };
    let pairs = with(with(pairs, "a")?, "b")?;
    let similarity = of(minhash_similarity(), &["a_signature", "b_signature"]);
    pairs.filter(similarity.gt_eq(lit(THRESHOLD)))?.select(vec![col("a_rank"), col("b_rank")])
}

/// A row for each band of each text.
fn bands(signatures: DataFrame) -> PlanResult<DataFrame> {
    let numbers: Vec<ScalarValue> = (0..N_BANDS).map(|band_idx| ScalarValue::UInt8(Some(band_idx as u8))).collect();
    let numbers = lit(ScalarValue::List(ScalarValue::new_list(&numbers, &DataType::UInt8, true))).alias("band_idx");
    let bands = of(minhash_bands(), &["signature"]).alias("band");
    signatures.select(vec![col("hash"), numbers, bands])?.unnest_columns(&["band_idx", "band"])
}

/// A column under the name of its side of a join.
fn named(side: &str, column: &str) -> Expr {
    col(column).alias(format!("{side}_{column}"))
}

/// By hash of the text, the ranks in the one column of `rows`.
async fn first_ranks(mut rows: SendableRecordBatchStream) -> PlanResult<BTreeMap<String, String>> {
    let mut ranks = BTreeMap::new();
    while let Some(batch) = rows.try_next().await? {
        ranks.extend(texts(&batch, 0)?.into_iter().map(|rank| (hash_of(&rank).to_owned(), rank)));
    }
    Ok(ranks)
}

/// Union-find over pairs of ranks: by hash of the text of every member of a cluster but the least, the rank of the least.
async fn clusters(mut pairs: SendableRecordBatchStream) -> PlanResult<BTreeMap<String, String>> {
    let mut ids: HashMap<String, usize> = HashMap::new();
    let mut edges = Vec::new();
    while let Some(batch) = pairs.try_next().await? {
        let mut id = |rank: String| {
            let next = ids.len();
            *ids.entry(rank).or_insert(next)
        };
        for (a, b) in texts(&batch, 0)?.into_iter().zip(texts(&batch, 1)?) {
            edges.push((id(a), id(b)));
        }
    }
    let mut ranks: Vec<(String, usize)> = ids.into_iter().collect();
    ranks.sort();
    // The root of a cluster is its smallest position, and positions are in the order of ranks.
    let mut position_of = vec![0; ranks.len()];
    ranks.iter().enumerate().for_each(|(position, (_, id))| position_of[*id] = position);
    let mut clusters = Clusters::new(ranks.len());
    edges.into_iter().for_each(|(a, b)| clusters.join(position_of[a], position_of[b]));
    let goes =
        (0..ranks.len()).map(|position| (position, clusters.root(position))).filter(|(member, root)| member != root);
    Ok(goes.map(|(member, root)| (hash_of(&ranks[member].0).to_owned(), ranks[root].0.clone())).collect())
}

/// A column of text, whatever the kind of text it came as.
fn texts(batch: &RecordBatch, column_idx: usize) -> PlanResult<Vec<String>> {
    let column = cast(batch.column(column_idx), &DataType::Utf8View)?;
    let column = as_string_view_array(&column)?;
    Ok((0..column.len()).map(|row| column.value(row).to_owned()).collect())
}
