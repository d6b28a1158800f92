//! The JSON documents of the Docker v1 protocol: what must hold of them before they are kept. Pure.

use std::collections::{BTreeMap, HashSet};

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use super::route::LIBRARY;
use crate::store::images::ImageId;

/// Ancestors that an image may have: docker stops at 127.
const ANCESTORS_MAX: usize = 4096;

/// What is looked at of an image's json.
#[derive(Deserialize)]
struct Identified {
    id: String,
}

/// Whether this is the json of `image`.
pub(super) fn is_json_of(image: &ImageId, content: &[u8]) -> bool {
    parse::<Identified>(content).is_some_and(|document| document.id == image.as_str())
}

/// Whether this is the ancestry of `image`: a list of ids, its own first.
pub(super) fn is_ancestry_of(image: &ImageId, content: &[u8]) -> bool {
    let Ok(ids) = serde_json::from_slice::<Vec<String>>(content) else { return false };
    ids.first().is_some_and(|first| first == image.as_str())
        && ids.len() <= ANCESTORS_MAX
        && ids.iter().all(|id| id.parse::<ImageId>().is_ok())
}

/// Whether this may be a list of tags: an object by tag, or a list of objects.
pub(super) fn is_tags(content: &[u8]) -> bool {
    begins_with(content, b"{[") && parse::<IgnoredAny>(content).is_some()
}

/// Whether this may be what a tag points at: an id, or a list of objects with ids.
pub(super) fn is_tag(content: &[u8]) -> bool {
    if begins_with(content, b"[") {
        return parse::<IgnoredAny>(content).is_some();
    }
    parse::<String>(content).is_some_and(|id| id.parse::<ImageId>().is_ok())
}

/// JSON, of which only what `T` asks for takes memory: it may be large.
fn parse<'a, T: Deserialize<'a>>(content: &'a [u8]) -> Option<T> {
    // What is skipped would not be looked at as text.
    serde_json::from_str(std::str::from_utf8(content).ok()?).ok()
}

fn begins_with(content: &[u8], any: &[u8]) -> bool {
    content.trim_ascii_start().first().is_some_and(|first| any.contains(first))
}

/// Tags and what they point at.
pub(super) fn tags(tags: &BTreeMap<String, ImageId>) -> Vec<u8> {
    let tags: Map<_, _> = tags.iter().map(|(tag, image)| (tag.clone(), image.as_str().into())).collect();
    Value::Object(tags).to_string().into_bytes()
}

/// What a source found, and what is here, one result for each name: the source's if both have it.
pub(super) fn search(query: &str, source: Option<&[u8]>, here: &[String]) -> Vec<u8> {
    let found = source.and_then(|source| serde_json::from_slice::<Map<String, Value>>(source).ok());
    let mut document = found.unwrap_or_default();
    let results = match document.remove("results") {
        Some(Value::Array(results)) => results,
        _ => Vec::new(),
    };
    let own = here.iter().map(|name| json!({ "name": name, "description": "" }));
    let mut names = HashSet::new();
    let merged: Vec<Value> = results
        .into_iter()
        .chain(own)
        .filter(|result| result["name"].as_str().is_some_and(|name| names.insert(plain(name).to_owned())))
        .collect();
    document.insert("query".into(), query.into());
    document.insert("num_results".into(), merged.len().into());
    document.insert("results".into(), merged.into());
    Value::Object(document).to_string().into_bytes()
}

/// A name without the namespace that need not be said.
fn plain(name: &str) -> &str {
    name.strip_prefix(LIBRARY).and_then(|name| name.strip_prefix('/')).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_of_another_image_is_not_kept() {
        let id = "0123456789abcdef";
        let image: ImageId = id.parse().expect("an id");
        assert!(is_json_of(&image, format!(r#"{{"id":"{id}","os":"linux"}}"#).as_bytes()));
        assert!(is_ancestry_of(&image, format!(r#"["{id}", "{id}"]"#).as_bytes()));
        for content in [r#"{"id":"fedcba9876543210"}"#, "{}", "[]", "", "<html>", r#""0123456789abcdef""#] {
            assert!(!is_json_of(&image, content.as_bytes()), "{content}");
            assert!(!is_ancestry_of(&image, content.as_bytes()), "{content}");
        }
        assert!(!is_ancestry_of(&image, format!(r#"["{id}","x"]"#).as_bytes()));
        assert!(!is_ancestry_of(&image, format!(r#"["fedcba9876543210","{id}"]"#).as_bytes()));
    }

    #[test]
    fn tags_are_json_of_their_kind_to_the_end() {
        for tags in [r#"{"latest":"0123456789abcdef"}"#, " {}\n", r#"[{"name":"latest","layer":"01"}]"#] {
            assert!(is_tags(tags.as_bytes()), "{tags}");
        }
        assert!(is_tag(b"\"0123456789abcdef\"") && is_tag(b"[{\"id\":\"01\"}]"));
        for content in [&b"{"[..], b"{} x", b"[1,]", b"\"x\"", b"1", b"", b"{\"a\":\"\xff\"}"] {
            assert!(!is_tags(content) && !is_tag(content), "{content:?}");
        }
        assert!(!is_tag(b"{}") && !is_tags(b"\"0123456789abcdef\""));
    }

    #[test]
    fn search_results_are_merged_by_name_and_counted_again() {
        let source = br#"{"num_results":9,"page":1,"results":[
            {"name":"library/a","description":"theirs"},{"name":"x/b","star_count":3}]}"#;
        let here = ["a".to_owned(), "x/b".to_owned(), "x/c".to_owned()];
        let merged: Value = serde_json::from_slice(&search("q", Some(source), &here)).expect("JSON");
        let names: Vec<_> =
            merged["results"].as_array().expect("a list").iter().map(|result| &result["name"]).collect();
        assert_eq!(names, ["library/a", "x/b", "x/c"]);
        assert_eq!(merged["results"][0]["description"], "theirs");
        assert_eq!((&merged["num_results"], &merged["page"]), (&json!(3), &json!(1)));
        let alone: Value = serde_json::from_slice(&search("q", None, &here)).expect("JSON");
        assert_eq!((&alone["num_results"], &alone["query"]), (&json!(3), &json!("q")));
        let senseless: Value = serde_json::from_slice(&search("q", Some(b"<html>"), &[])).expect("JSON");
        assert_eq!(senseless["num_results"], 0);
    }
}
