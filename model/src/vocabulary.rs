//! Which entries of the vocabulary each language uses, so that serving computes a logit for those alone (vocabulary filtering: Berard et
//! al. 2021, "Efficient inference for multilingual neural machine translation", arXiv 2109.06679, section 3).

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// By name of the language: ids that it uses, ascending. A language that is not in it uses all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VocabularyFilter(BTreeMap<String, Vec<u32>>);

impl VocabularyFilter {
    /// Has `language` use `ids` alone.
    pub fn insert(&mut self, language: &str, mut ids: Vec<u32>) {
        ids.sort_unstable();
        ids.dedup();
        self.0.insert(language.to_owned(), ids);
    }

    /// Has `language`, if it uses but a part, use `ids` too.
    pub fn add(&mut self, language: &str, ids: &[u32]) {
        if let Some(mut all) = self.0.remove(language) {
            all.extend(ids);
            self.insert(language, all);
        }
    }

    /// Every language that uses but a part, and its ids.
    pub fn languages(&self) -> impl Iterator<Item = (&str, &[u32])> {
        self.0.iter().map(|(language, ids)| (language.as_str(), ids.as_slice()))
    }

    /// One bit for each of `vocab_size` entries, lowest first.
    pub(crate) fn to_bits(ids: &[u32], vocab_size: usize) -> Vec<u8> {
        let mut bits = vec![0; vocab_size.div_ceil(8)];
        ids.iter().for_each(|&id| bits[id as usize / 8] |= 1 << (id % 8));
        bits
    }

    /// The ids of bits as [`VocabularyFilter::to_bits`] makes them.
    ///
    /// # Errors
    /// Another number of bits, none set, or some beyond the vocabulary.
    pub(crate) fn from_bits(bits: &[u8], vocab_size: usize) -> Result<Vec<u32>> {
        let is_set = |id: &u32| bits.get(*id as usize / 8).is_some_and(|byte| byte >> (id % 8) & 1 == 1);
        let ids: Vec<u32> = (0..vocab_size as u32).filter(is_set).collect();
        let n_set: u32 = bits.iter().map(|byte| byte.count_ones()).sum();
        if bits.len() != vocab_size.div_ceil(8) || ids.is_empty() || ids.len() != n_set as usize {
            let found = format!("{} bytes, {n_set} bits set", bits.len());
            return Err(Error::Input(format!("{found}: expected a bit for each of {vocab_size} entries, one set")));
        }
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_come_back_as_the_ids_that_they_were() {
        let mut filter = VocabularyFilter::default();
        filter.insert("lua", vec![9, 0, 18, 9]);
        let (_, ids) = filter.languages().next().unwrap();
        assert_eq!(ids, [0, 9, 18]);
        let bits = VocabularyFilter::to_bits(ids, 19);
        assert_eq!(bits, [1, 2, 4]);
        assert_eq!(VocabularyFilter::from_bits(&bits, 19).unwrap(), ids);
    }

    #[test]
    fn bits_of_another_vocabulary_are_an_error() {
        for (bits, vocab_size) in [(vec![1, 0], 19), (vec![0, 0, 8], 19), (vec![0, 0, 0], 19), (vec![1; 4], 19)] {
            let error = VocabularyFilter::from_bits(&bits, vocab_size).unwrap_err().to_string();
            assert!(error.contains("expected a bit for each of 19 entries"), "{error}");
        }
    }
}
