//! Keys that differ from those of a manifest by upper and lower case alone. Go's reader, and with it most clients and
//! registries, takes one for the other (`encoding/json`, "Unmarshal"), ours does not: it would not see what they see.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

const MANIFEST: [&str; 9] = [
    "schemaVersion",
    "mediaType",
    "config",
    "layers",
    "blobs",
    "manifests",
    "fsLayers",
    "subject",
    "artifactType",
];
const DESCRIPTOR: [&str; 4] = ["mediaType", "digest", "size", "urls"];
const FS_LAYER: [&str; 1] = ["blobSum"];

/// A key of a manifest that some readers take for another one, and that one. Keeps nothing of the manifest in memory.
pub(super) fn misspelt(manifest: &[u8]) -> Result<Option<(String, &'static str)>, serde_json::Error> {
    let mut found = None;
    if may_be_misspelt(manifest) {
        let mut reader = serde_json::Deserializer::from_slice(manifest);
        Object { known: &MANIFEST, found: &mut found }.deserialize(&mut reader)?;
    }
    Ok(found)
}

/// A quick look at all texts, which nearly always finds none: keys and values alike.
fn may_be_misspelt(manifest: &[u8]) -> bool {
    let known = || MANIFEST.iter().chain(&DESCRIPTOR).chain(&FS_LAYER);
    let longest = known().map(|key| key.len()).max().unwrap_or(0);
    // A letter can be written as its number, and one that folds to `s` or `k` has up to three bytes.
    manifest.windows(2).any(|pair| pair == br"\u")
        || manifest.split(|byte| *byte == b'"').filter(|text| text.len() <= 3 * longest).any(|text| {
            str::from_utf8(text).is_ok_and(|text| known().any(|known| text != *known && is_like(text, known)))
        })
}

/// Which of these keys a text is taken for without being it.
fn other_than(key: &str, known: &[&'static str]) -> Option<&'static str> {
    if known.contains(&key) {
        return None;
    }
    known.iter().copied().find(|known| is_like(key, known))
}

/// Whether they are one by Go's folding: that of ASCII, and the two other letters that fold into it.
fn is_like(text: &str, known: &str) -> bool {
    let fold = |letter: char| match letter {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        letter => letter.to_ascii_lowercase(),
    };
    text.len() >= known.len() && text.chars().map(fold).eq(known.chars().map(fold))
}

/// What is read: an object with such keys, a list of such objects, or nothing.
struct Object<'a> {
    known: &'static [&'static str],
    found: &'a mut Option<(String, &'static str)>,
}

impl Object<'_> {
    /// What stands under a key that is known.
    fn below(&self, key: &str) -> Option<&'static [&'static str]> {
        match key {
            _ if self.known != MANIFEST => None,
            "config" | "subject" | "layers" | "blobs" | "manifests" => Some(&DESCRIPTOR),
            "fsLayers" => Some(&FS_LAYER),
            _ => None,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Object<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object, or a list of objects")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Object { known: self.known, found: &mut *self.found })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<(), A::Error> {
        while let Some(key) = object.next_key::<String>()? {
            match self.below(&key) {
                Some(known) => object.next_value_seed(Object { known, found: &mut *self.found })?,
                None => drop(object.next_value::<IgnoredAny>()?),
            }
            if let Some(known) = other_than(&key, self.known) {
                self.found.get_or_insert((key, known));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn found(manifest: &str) -> Option<&'static str> {
        misspelt(manifest.as_bytes()).expect("a manifest").map(|(_, known)| known)
    }

    #[test]
    fn keys_that_go_takes_for_others() {
        assert_eq!(found(r#"{"Layers":[]}"#), Some("layers"));
        assert_eq!(found(r#"{"LAYERS":[],"layers":[]}"#), Some("layers"));
        assert_eq!(found(r#"{"layerſ":[]}"#), Some("layers"));
        assert_eq!(found(r#"{"\u004cayers":[]}"#), Some("layers"));
        assert_eq!(found(r#"{"layers":[{"Digest":"x"}]}"#), Some("digest"));
        assert_eq!(found(r#"{"config":{"digest":"x","URLs":[]}}"#), Some("urls"));
        assert_eq!(found(r#"{"fsLayers":[{"blobsum":"x"}]}"#), Some("blobSum"));
        assert_eq!(found(r#"{"manifests":[{"mediatype":"x"}]}"#), Some("mediaType"));
    }

    #[test]
    fn the_same_words_elsewhere_are_nobodys_keys() {
        assert_eq!(found(r#"{"layers":[{"digest":"x","annotations":{"Digest":"x"}}]}"#), None);
        assert_eq!(found(r#"{"annotations":{"Layers":"Config"},"config":{"mediaType":"Layers"}}"#), None);
        assert_eq!(found(r#"{"history":[{"v1Compatibility":"{\"Config\":{},\"config\":{}}"}]}"#), None);
        assert_eq!(found(r#"{"layers":null,"layer":[],"digests":1,"a\u0020b":2}"#), None);
    }

    /// What our reader skips must not keep it from seeing the rest.
    #[test]
    fn what_is_skipped_hides_nothing() {
        for odd in [r#""\ud800""#, "1e999", r#"{"a":[{"":0}]}"#] {
            assert_eq!(found(&format!(r#"{{"x":{odd},"Layers":[]}}"#)), Some("layers"), "{odd}");
        }
    }
}
