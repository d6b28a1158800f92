//! Keys that differ from those of a manifest by upper and lower case alone. Go's reader, and with it most clients and
//! registries, takes one for the other (`encoding/json`, "Unmarshal"), ours does not: it would not see what they see.

use serde_json::{Map, Value};

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

/// A key of a manifest that some readers take for another one, and that one.
pub(super) fn misspelt(manifest: &[u8]) -> Option<(String, &'static str)> {
    if !may_be_misspelt(manifest) {
        return None;
    }
    let manifest: Map<String, Value> = serde_json::from_slice(manifest).ok()?;
    let single = ["config", "subject"].into_iter().filter_map(|key| manifest.get(key));
    let listed = |key: &str| manifest.get(key).and_then(Value::as_array).into_iter().flatten();
    let descriptors = single.chain(["layers", "blobs", "manifests"].into_iter().flat_map(listed));
    let descriptors = descriptors.filter_map(Value::as_object).map(|object| (object, &DESCRIPTOR[..]));
    let fs_layers = listed("fsLayers").filter_map(Value::as_object).map(|object| (object, &FS_LAYER[..]));
    let mut objects = [(&manifest, &MANIFEST[..])].into_iter().chain(descriptors).chain(fs_layers);
    objects.find_map(|(object, known)| {
        object.keys().find_map(|key| Some((key.clone(), other_than(key, known)?)))
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn found(manifest: &str) -> Option<&'static str> {
        misspelt(manifest.as_bytes()).map(|(_, known)| known)
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
        assert_eq!(found(r#"{"layer":[],"digests":1,"a\u0020b":2}"#), None);
    }
}
