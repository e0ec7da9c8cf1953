//! Finds fields again in the text that a document came from.
//!
//! Types that carry places along would cost every reader of every field; only complaints need them.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess};
use serde_saphyr::Spanned;

use super::{Path, Segment, options};

/// Line and column of each field, or of the nearest one above it that is there.
pub(super) fn locate(text: &str, paths: &[&Path]) -> Vec<(u64, u64)> {
    let mut places = vec![None; paths.len()];
    let mut left: Vec<&[Segment]> = paths.iter().map(|path| path.0.as_slice()).collect();
    while places.contains(&None) {
        let before = places.iter().filter(|place| place.is_none()).count();
        let targets = left.iter().copied().enumerate().filter(|(at, _)| places[*at].is_none()).collect();
        let mut missing = before;
        let seek = Seek { targets, places: &mut places, missing: &mut missing };
        // The walk ends with an error as soon as it has found everything.
        let _: Result<(), _> =
            serde_saphyr::with_deserializer_from_str_with_options(text, options(), |document| {
                seek.deserialize(document)
            });
        if missing == before {
            // What is left is not there: look one level up.
            for (place, path) in places.iter_mut().zip(&mut left).filter(|(place, _)| place.is_none()) {
                match path.split_last() {
                    Some((_, parent)) => *path = parent,
                    None => *place = Some((0, 0)),
                }
            }
        }
    }
    places.into_iter().map(Option::unwrap_or_default).collect()
}

/// Walks down several paths at once and notes where they end. A field whose place is noted is not
/// walked into; paths that go on there are left for the next walk.
struct Seek<'a> {
    targets: Vec<(usize, &'a [Segment])>,
    places: &'a mut [Option<(u64, u64)>],
    missing: &'a mut usize,
}

impl<'a> Seek<'a> {
    /// Those of the paths that lead on through one key or index, from there.
    fn below(&mut self, through: impl Fn(&Segment) -> bool) -> Option<Seek<'_>> {
        let step = |(at, path): &(usize, &'a [Segment])| {
            path.split_first().filter(|(first, _)| through(first)).map(|(_, rest)| (*at, rest))
        };
        let targets: Vec<_> = self.targets.iter().filter_map(step).collect();
        (!targets.is_empty()).then_some(Seek { targets, places: self.places, missing: self.missing })
    }
}

impl<'de> DeserializeSeed<'de> for Seek<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        use serde::Deserialize;
        if self.targets.iter().any(|(_, path)| path.is_empty()) {
            let here = Spanned::<IgnoredAny>::deserialize(deserializer)?.referenced;
            for (at, _) in self.targets.iter().filter(|(_, path)| path.is_empty()) {
                self.places[*at] = Some((here.line(), here.column()));
                *self.missing -= 1;
            }
            return if *self.missing == 0 { Err(D::Error::custom("all found")) } else { Ok(()) };
        }
        // The first segment tells what kind of node this has to be; paths come from the same document.
        match self.targets.first() {
            Some((_, [Segment::Index(_), ..])) => deserializer.deserialize_seq(self),
            _ => deserializer.deserialize_map(self),
        }
    }
}

impl<'de> serde::de::Visitor<'de> for Seek<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("what the paths lead through")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match self.below(|segment| matches!(segment, Segment::Key(wanted) if *wanted == key)) {
                Some(seek) => map.next_value_seed(seek)?,
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
        for index in 0.. {
            let more = match self.below(|segment| *segment == Segment::Index(index)) {
                Some(seek) => seq.next_element_seed(seek)?.is_some(),
                None => seq.next_element::<IgnoredAny>()?.is_some(),
            };
            if !more {
                break;
            }
        }
        Ok(())
    }
}
