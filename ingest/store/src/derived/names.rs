//! Texts and the small numbers that stand for them while spans are counted.
//!
//! Not here: any lasting numbering. A number means something only beside the [`Names`] that gave
//! it out, and those live no longer than a memtable or a generation of the edge index.

use std::sync::Arc;

use arrow::array::{ArrayRef, DictionaryArray, Int32Array, StringArray};
use arrow::datatypes::Int32Type;
use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64;

/// The number of no text.
pub(super) const NO_NAME: u32 = u32::MAX;

/// What a text takes beside its bytes: its place in the list, its reference count, its number.
const NAME_OVERHEAD_BYTES: usize = 40;

/// Distinct texts, numbered in order of appearance.
#[derive(Debug, Default)]
pub(super) struct Names {
    texts: Vec<Arc<str>>,
    lookup: HashTable<u32>,
    text_bytes: usize,
}

impl Names {
    /// The number of a text, a new one when it is new.
    pub(super) fn number(&mut self, text: &str) -> u32 {
        let texts = &self.texts;
        let hash = xxh3_64(text.as_bytes());
        if let Some(number) = self.lookup.find(hash, |number| &*texts[*number as usize] == text) {
            return *number;
        }
        let number = u32::try_from(self.texts.len()).expect("a memtable has fewer distinct texts than 2^32");
        self.texts.push(Arc::from(text));
        self.text_bytes += text.len();
        let texts = &self.texts;
        self.lookup.insert_unique(hash, number, |other| xxh3_64(texts[*other as usize].as_bytes()));
        number
    }

    /// The number of a text that may be missing.
    pub(super) fn number_of(&mut self, text: Option<&str>) -> u32 {
        text.map_or(NO_NAME, |text| self.number(text))
    }

    /// The text of a number; `None` for [`NO_NAME`].
    pub(super) fn text(&self, number: u32) -> Option<&str> {
        self.texts.get(number as usize).map(|text| &**text)
    }

    /// The memory it takes.
    pub(super) fn bytes(&self) -> usize {
        self.text_bytes + self.texts.len() * NAME_OVERHEAD_BYTES
    }

    /// Numbers as a column of text that holds those texts only.
    pub(super) fn column(&self, numbers: impl Iterator<Item = u32>) -> ArrayRef {
        let mut places = vec![-1_i32; self.texts.len()];
        let mut used: Vec<&str> = Vec::new();
        let keys: Int32Array = numbers
            .map(|number| {
                let place = places.get_mut(number as usize)?;
                if *place < 0 {
                    *place = i32::try_from(used.len()).expect("a memtable has fewer distinct texts than 2^31");
                    used.push(&self.texts[number as usize]);
                }
                Some(*place)
            })
            .collect();
        let values = Arc::new(StringArray::from_iter_values(used));
        Arc::new(DictionaryArray::<Int32Type>::try_new(keys, values).expect("keys point into the values"))
    }
}
