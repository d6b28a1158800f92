//! What the operator said, by flags, variables and a JSON file: one map of keys, which are the flags' names.
//!
//! A flag wins over its variable, and both over the file. A value that cannot be used is refused with its place, its key,
//! the value and what would be right.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::fs::File;
use std::io::Read;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use humantime_serde::re::humantime;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

/// The longest file, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// The longest piece of a value that a message repeats, in characters.
const SHOWN_CHARS_MAX: usize = 100;

/// Everything that was said.
#[derive(Debug, Default)]
pub(super) struct Settings {
    given: BTreeMap<String, (Origin, Value)>,
}

/// A JSON object in which no key stands twice: one of the two would be lost without a word.
struct Object(BTreeMap<String, Value>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor)
    }
}

struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Object;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
        let mut object = BTreeMap::new();
        while let Some((key, value)) = map.next_entry::<String, Value>()? {
            let shown: String = key.chars().take(SHOWN_CHARS_MAX).collect();
            if object.insert(key, value).is_some() {
                return Err(de::Error::custom(format_args!("the key {shown:?} stands there twice")));
            }
        }
        Ok(Object(object))
    }
}

/// Where something was said.
#[derive(Clone, Debug)]
enum Origin {
    Flag,
    Variable(String),
    File(PathBuf),
}

impl Settings {
    /// What a JSON object in a file says. The error says what is wrong with the file.
    pub(super) fn of_file(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let mut text = String::new();
        File::open(path)
            .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text))
            .map_err(|error| format!("{shown}: cannot read the configuration: {error}"))?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(format!("{shown}: is longer than {FILE_BYTES_MAX} bytes"));
        }
        let Object(object) = serde_json::from_str(&text).map_err(|error| {
            format!("{shown}: {error}; a JSON object with keys such as \"addrs\" is expected")
        })?;
        let origin = Origin::File(path.to_owned());
        // As Python's `None`, which a program that writes such a file may mean by it.
        let given = object.into_iter().filter(|(_, value)| !value.is_null());
        Ok(Self { given: given.map(|(key, value)| (key, (origin.clone(), value))).collect() })
    }

    /// A flag was given, on the command line or by `variable`, and wins over what is there.
    pub(super) fn set(&mut self, key: &str, variable: Option<String>, value: Value) {
        let origin = variable.map_or(Origin::Flag, Origin::Variable);
        self.given.insert(key.to_owned(), (origin, value));
    }

    /// Whether anything is left that was said of a key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.given.contains_key(key)
    }

    /// Whether a flag or a variable says something of a key.
    pub(super) fn is_by_flag(&self, key: &str) -> bool {
        self.given.get(key).is_some_and(|(origin, _)| !matches!(origin, Origin::File(_)))
    }

    /// Forgets what the file says of a key.
    pub(super) fn drop_from_file(&mut self, key: &str) {
        if let Some((Origin::File(_), _)) = self.given.get(key) {
            self.given.remove(key);
        }
    }

    /// Takes a text.
    pub(super) fn text(&mut self, key: &str) -> Result<Option<String>, String> {
        self.take(key, "is not a text", "write a string", |value| match value {
            Value::String(text) => Some(text.clone()),
            _ => None,
        })
    }

    /// Takes a path.
    pub(super) fn path(&mut self, key: &str) -> Result<Option<PathBuf>, String> {
        let remedy = "write a path";
        self.take(key, "is not a path", remedy, |value| match value {
            Value::String(text) if !text.is_empty() => Some(text.into()),
            _ => None,
        })
    }

    /// Takes texts: one, or a list.
    pub(super) fn texts(&mut self, key: &str) -> Result<Vec<String>, String> {
        let texts = self.take(
            key,
            "is not a text or a list of texts",
            "write \"…\" or [\"…\", \"…\"]",
            |value| match value {
                Value::String(text) => Some(vec![text.clone()]),
                Value::Array(list) => list.iter().map(|one| one.as_str().map(str::to_owned)).collect(),
                _ => None,
            },
        );
        Ok(texts?.unwrap_or_default())
    }

    /// Takes a switch, which is off unless it was said.
    pub(super) fn switch(&mut self, key: &str) -> Result<bool, String> {
        let switch = self.take(key, "is neither on nor off", "write true or false", |value| match value {
            Value::Bool(switch) => Some(*switch),
            Value::String(text) => match text.as_str() {
                "true" | "1" | "on" => Some(true),
                "false" | "0" | "off" => Some(false),
                _ => None,
            },
            _ => None,
        });
        Ok(switch?.unwrap_or(false))
    }

    /// Takes a whole number.
    pub(super) fn number(&mut self, key: &str, allowed: RangeInclusive<u32>) -> Result<Option<u32>, String> {
        let remedy = format!("write a whole number from {} to {}", allowed.start(), allowed.end());
        self.take(key, "is not possible here", &remedy, |value| {
            let number = match value {
                Value::Number(number) => number.as_u64()?.try_into().ok()?,
                Value::String(text) => text.trim().parse().ok()?,
                _ => return None,
            };
            allowed.contains(&number).then_some(number)
        })
    }

    /// Takes a duration: text with a unit, or a number of seconds.
    pub(super) fn duration(
        &mut self,
        key: &str,
        allowed: RangeInclusive<Duration>,
    ) -> Result<Option<Duration>, String> {
        let (least, most) =
            (humantime::format_duration(*allowed.start()), humantime::format_duration(*allowed.end()));
        let remedy = format!("write a number of seconds, or such as \"5m\", from {least} to {most}");
        self.take(key, "is not a duration that is possible here", &remedy, |value| {
            let duration = match value {
                Value::Number(number) => Duration::try_from_secs_f64(number.as_f64()?).ok()?,
                Value::String(text) => match text.trim().parse() {
                    Ok(seconds) => Duration::from_secs(seconds),
                    Err(_) => humantime::parse_duration(text).ok()?,
                },
                _ => return None,
            };
            allowed.contains(&duration).then_some(duration)
        })
    }

    /// Takes a text that means something.
    pub(super) fn parsed<T: FromStr<Err: Display>>(&mut self, key: &str) -> Result<Option<T>, String> {
        let Some(label) = self.label(key) else { return Ok(None) };
        let Some(text) = self.text(key)? else { return Ok(None) };
        text.parse().map(Some).map_err(|why| format!("{label}: {why}"))
    }

    /// Takes texts that mean something, each by itself.
    pub(super) fn all_parsed<T, E: Display>(
        &mut self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Vec<T>, String> {
        let Some(label) = self.label(key) else { return Ok(Vec::new()) };
        let texts = self.texts(key)?;
        texts.iter().map(|text| parse(text).map_err(|why| format!("{label}: {why}"))).collect()
    }

    /// A refusal of what was said of a key together with others.
    pub(super) fn refused(&self, key: &str, problem: &str) -> String {
        format!("{} {problem}", self.label(key).unwrap_or_else(|| format!("--{key}")))
    }

    /// To be called when everything that is known was taken: what is left is unknown.
    pub(super) fn finish(self, known: &[&str]) -> Result<(), String> {
        let Some(key) = self.given.keys().next() else { return Ok(()) };
        let shown: String = key.chars().take(SHOWN_CHARS_MAX).collect();
        let label = self.label(key).unwrap_or_default();
        let place = label.rsplit_once(": ").map_or("", |(place, _)| place);
        Err(format!("{place}: the key {shown:?} is unknown; known are {}", known.join(", ")))
    }

    /// Place and key for a message.
    fn label(&self, key: &str) -> Option<String> {
        let (origin, _) = self.given.get(key)?;
        Some(match origin {
            Origin::Flag => format!("--{key}"),
            Origin::Variable(name) => name.clone(),
            Origin::File(path) => format!("{}: {key}", path.display()),
        })
    }

    fn take<T>(
        &mut self,
        key: &str,
        problem: &str,
        remedy: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, String> {
        let label = self.label(key).unwrap_or_default();
        let Some((_, value)) = self.given.remove(key) else { return Ok(None) };
        match read(&value) {
            Some(read) => Ok(Some(read)),
            None => Err(format!("{label} = {} {problem}; {remedy}", shown(&value))),
        }
    }
}

/// A value for a message.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn settings(value: &Value) -> Settings {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), value.to_string()).unwrap();
        Settings::of_file(file.path()).unwrap()
    }

    #[test]
    fn values_have_several_forms() {
        let mut given = settings(&json!({
            "one": "a", "list": ["a", "b"], "on": true, "off": "false", "number": 7, "digits": "7",
            "seconds": 30, "digits-of-seconds": "30", "minutes": "2m", "nothing": null,
        }));
        assert_eq!(given.texts("one").unwrap(), ["a"]);
        assert_eq!(given.texts("list").unwrap(), ["a", "b"]);
        assert!(
            given.switch("on").unwrap() && !given.switch("off").unwrap() && !given.switch("not").unwrap()
        );
        assert_eq!(given.number("number", 1..=7).unwrap(), Some(7));
        assert_eq!(given.number("digits", 1..=7).unwrap(), Some(7));
        let (least, most) = (Duration::from_secs(1), Duration::from_hours(1));
        assert_eq!(given.duration("seconds", least..=most).unwrap(), Some(Duration::from_secs(30)));
        assert_eq!(given.duration("digits-of-seconds", least..=most).unwrap(), Some(Duration::from_secs(30)));
        assert_eq!(given.duration("minutes", least..=most).unwrap(), Some(Duration::from_mins(2)));
        assert_eq!(given.text("nothing").unwrap(), None);
        given.finish(&[]).unwrap();
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let most = Duration::from_hours(1);
        let values = json!({
            "a": 1, "b": ["x", 2], "c": "yes", "d": -1, "e": 8, "f": "soon", "g": -3, "h": "", "i": "1.x.y",
        });
        let mut given = settings(&values);
        let refusals = [
            given.text("a").unwrap_err(),
            given.texts("b").unwrap_err(),
            given.switch("c").unwrap_err(),
            given.number("d", 1..=7).unwrap_err(),
            given.number("e", 1..=7).unwrap_err(),
            given.duration("f", Duration::ZERO..=most).unwrap_err(),
            given.duration("g", Duration::ZERO..=most).unwrap_err(),
            given.path("h").unwrap_err(),
            given.parsed::<std::net::IpAddr>("i").unwrap_err(),
        ];
        for (key, refusal) in [
            "a = 1",
            "b = [\"x\",2]",
            "c = \"yes\"",
            "d = -1",
            "e = 8",
            "f = \"soon\"",
            "g = -3",
            "h = \"\"",
            "i: ",
        ]
        .iter()
        .zip(refusals)
        {
            assert!(refusal.contains(&format!(": {key}")), "{key} in {refusal}");
        }
    }

    #[test]
    fn unknown_keys_are_named() {
        let error = settings(&json!({"adrs": "a"})).finish(&["addrs", "to"]).unwrap_err();
        assert!(error.contains("\"adrs\" is unknown; known are addrs, to"), "{error}");
    }

    #[test]
    fn a_flag_wins_and_says_so() {
        let mut given = settings(&json!({"to": "a", "semver": "1"}));
        given.set("to", None, json!("b"));
        given.set("semver", Some("SPLICEWAY_REPLICATE_SEMVER".to_owned()), json!(1));
        assert_eq!(given.text("to").unwrap().as_deref(), Some("b"));
        assert!(given.text("semver").unwrap_err().starts_with("SPLICEWAY_REPLICATE_SEMVER = 1 "));
    }

    #[test]
    fn a_file_that_is_no_object_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for text in ["", "[]", "{\"a\": }", "1", "{\"a\": 1, \"a\": 2}"] {
            std::fs::write(file.path(), text).unwrap();
            let error = Settings::of_file(file.path()).unwrap_err();
            assert!(error.contains("a JSON object"), "{error}");
        }
        assert!(Settings::of_file(Path::new("/does/not/exist")).unwrap_err().contains("cannot read"));
    }
}
