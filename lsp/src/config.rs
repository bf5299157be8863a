//! What the user may set: `initializationOptions`, over them what `workspace/configuration` answers, over both what the editor pushes.
//! Each of the three replaces only itself, so that a key that is deleted there falls back to the others or to the default. A key that
//! is unknown or a value that is wrong is reported and sets nothing.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::exclude::Exclusions;

/// The section of an editor's settings that is ours.
pub const SECTION: &str = "multicoder";

/// When completions are also offered as items of the completion menu.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum MenuItems {
    /// Only to editors that do not announce inline completion.
    #[default]
    Auto,
    Always,
    Never,
}

/// The settings in force.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whether anything is offered at all.
    pub enable: bool,
    /// The least geometric-mean probability of a token, `0..=1`, at which an answer is shown.
    pub min_probability: f32,
    /// Lines with text that an answer may have.
    pub max_lines: usize,
    /// Tokens after which an unfinished line is given up.
    pub max_tokens: usize,
    /// Time after which an unfinished line is given up, in milliseconds.
    pub timeout_ms: u64,
    /// The user's patterns of files that are not completed.
    pub exclude: Vec<String>,
    /// Whether the default patterns (secrets) hold as well.
    pub exclude_defaults: bool,
    /// Names of languages that are not completed.
    pub disabled_languages: Vec<String>,
    /// When menu items are offered.
    pub completion_items: MenuItems,
    /// Whether files of the open folders are read, to guess from.
    pub read_project: bool,
    /// `exclude` and the defaults, compiled.
    pub exclusions: Exclusions,
}

impl Settings {
    /// What holds where nothing is set.
    pub fn standard() -> Settings {
        Settings {
            enable: true,
            min_probability: 0.5,
            max_lines: 1,
            max_tokens: 64,
            timeout_ms: 2000,
            exclude: Vec::new(),
            exclude_defaults: true,
            disabled_languages: Vec::new(),
            completion_items: MenuItems::Auto,
            read_project: true,
            exclusions: Exclusions::new(true, &[]).unwrap_or_default(),
        }
    }

    /// Sets what `value` says: an object with our keys, possibly inside our section, or null. Returns what was wrong, in sentences.
    pub fn merge(&mut self, value: &Value) -> Vec<String> {
        let own = value.get(SECTION).unwrap_or(value);
        let fields = match own {
            Value::Null => return Vec::new(),
            Value::Object(fields) => fields,
            other => return vec![format!("{SECTION}: got {other}, expected an object of settings")],
        };
        let mut problems = Vec::new();
        for (key, value) in fields {
            if value.is_null() {
                continue;
            }
            match FIELDS.iter().find(|field| field.key == key) {
                Some(field) => {
                    if (field.set)(self, value).is_none() {
                        problems.push(format!("{SECTION}.{key}: got {value}, expected {}", field.expected));
                    }
                }
                None => problems.push(format!("{SECTION}.{key}: unknown; the settings are {}", keys())),
            }
        }
        problems.extend(self.compile_exclusions(fields));
        problems
    }

    fn compile_exclusions(&mut self, changed: &Map<String, Value>) -> Option<String> {
        if !changed.contains_key("exclude") && !changed.contains_key("excludeDefaults") {
            return None;
        }
        match Exclusions::new(self.exclude_defaults, &self.exclude) {
            Ok(exclusions) => self.exclusions = exclusions,
            Err(reason) => return Some(format!("{SECTION}.exclude: {reason}; the former patterns still hold")),
        }
        None
    }
}

/// Where settings come from; a later one wins.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Layer {
    /// `initializationOptions`.
    Initial,
    /// The answer to `workspace/configuration`.
    Pulled,
    /// `workspace/didChangeConfiguration`. Some editors push the settings of all servers in one object.
    Pushed,
}

/// The settings in force and what they are made of.
#[derive(Debug)]
pub struct Layers {
    values: [Value; 3],
    settings: Arc<Settings>,
}

impl Default for Layers {
    fn default() -> Layers {
        Layers { values: Default::default(), settings: Arc::new(Settings::standard()) }
    }
}

impl Layers {
    /// The settings in force.
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.clone()
    }

    /// Replaces what one source says. Returns what was wrong with it, in sentences.
    pub fn set(&mut self, layer: Layer, value: &Value) -> Vec<String> {
        self.values[layer as usize] = match layer {
            Layer::Pushed => own_of_all(value),
            Layer::Initial | Layer::Pulled => value.clone(),
        };
        let mut settings = Settings::standard();
        let mut problems: Vec<Vec<String>> = self.values.iter().map(|value| settings.merge(value)).collect();
        self.settings = Arc::new(settings);
        problems.swap_remove(layer as usize)
    }
}

/// Of settings that may be those of all servers what is meant for us: our section, or without one the keys that are ours.
fn own_of_all(value: &Value) -> Value {
    match value {
        Value::Object(fields) if !fields.contains_key(SECTION) => {
            let is_own = |key: &str| FIELDS.iter().any(|field| field.key == key);
            fields.iter().filter(|(key, _)| is_own(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
        }
        _ => value.clone(),
    }
}

/// One setting: its key, what it may be, and how it is taken over.
struct Field {
    key: &'static str,
    expected: &'static str,
    set: fn(&mut Settings, &Value) -> Option<()>,
}

#[rustfmt::skip]
const FIELDS: &[Field] = &[
    Field { key: "completionItems", expected: "\"auto\", \"always\" or \"never\"", set: |s, v| menu_items(v).map(|v| s.completion_items = v) },
    Field { key: "disabledLanguages", expected: "a list of language names", set: |s, v| strings(v).map(|v| s.disabled_languages = v) },
    Field { key: "enable", expected: "true or false", set: |s, v| v.as_bool().map(|v| s.enable = v) },
    Field { key: "exclude", expected: "a list of glob patterns", set: |s, v| strings(v).map(|v| s.exclude = v) },
    Field { key: "excludeDefaults", expected: "true or false", set: |s, v| v.as_bool().map(|v| s.exclude_defaults = v) },
    Field { key: "maxLines", expected: "a whole number from 1 to 32", set: |s, v| whole(v, 1, 32).map(|v| s.max_lines = v as usize) },
    Field { key: "maxTokens", expected: "a whole number from 1 to 512", set: |s, v| whole(v, 1, 512).map(|v| s.max_tokens = v as usize) },
    Field { key: "minProbability", expected: "a number from 0 to 1", set: |s, v| fraction(v).map(|v| s.min_probability = v) },
    Field { key: "readProject", expected: "true or false", set: |s, v| v.as_bool().map(|v| s.read_project = v) },
    Field { key: "timeoutMs", expected: "a whole number from 10 to 60000", set: |s, v| whole(v, 10, 60_000).map(|v| s.timeout_ms = v) },
];

/// All keys, for messages and for `doctor`.
pub fn keys() -> String {
    FIELDS.iter().map(|field| field.key).collect::<Vec<_>>().join(", ")
}

fn menu_items(value: &Value) -> Option<MenuItems> {
    match value.as_str()? {
        "auto" => Some(MenuItems::Auto),
        "always" => Some(MenuItems::Always),
        "never" => Some(MenuItems::Never),
        _ => None,
    }
}

fn strings(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|item| item.as_str().map(str::to_string)).collect()
}

fn whole(value: &Value, least: u64, most: u64) -> Option<u64> {
    value.as_u64().filter(|n| (least..=most).contains(n))
}

fn fraction(value: &Value) -> Option<f32> {
    value.as_f64().filter(|n| (0.0..=1.0).contains(n)).map(|n| n as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::Path;

    #[test]
    fn merges_in_order_and_unwraps_the_section() {
        let mut settings = Settings::standard();
        assert!(settings.merge(&json!({"minProbability": 0.5, "maxLines": 3})).is_empty());
        assert!(settings.merge(&json!({"multicoder": {"maxLines": 2, "enable": false}})).is_empty());
        assert!(settings.merge(&Value::Null).is_empty() && settings.merge(&json!({"multicoder": null})).is_empty());
        assert_eq!((settings.min_probability, settings.max_lines, settings.enable), (0.5, 2, false));
    }

    #[test]
    fn reports_unknown_keys_with_the_valid_ones_and_keeps_old_values() {
        let mut settings = Settings::standard();
        let problems = settings.merge(&json!({"maxLine": 2, "maxTokens": "many", "exclude": [1], "timeoutMs": 5}));
        assert_eq!(problems.len(), 4, "{problems:?}");
        assert!(problems.iter().any(|p| p.starts_with("multicoder.maxLine: unknown") && p.contains("maxLines")));
        assert!(problems.iter().any(|p| p.contains("\"many\"") && p.contains("1 to 512")));
        assert_eq!((settings.max_tokens, settings.timeout_ms), (64, 2000));
        assert_eq!(settings.merge(&json!([1])).len(), 1);
    }

    #[test]
    fn exclusions_follow_the_settings() {
        let mut settings = Settings::standard();
        assert!(settings.exclusions.excludes(Path::new(".env")).is_some());
        assert!(settings.merge(&json!({"exclude": ["*.gen.go"], "excludeDefaults": false})).is_empty());
        assert!(settings.exclusions.excludes(Path::new("a.gen.go")).is_some());
        assert!(settings.exclusions.excludes(Path::new(".env")).is_none());
        assert_eq!(settings.merge(&json!({"exclude": ["["]})).len(), 1);
        assert!(settings.exclusions.excludes(Path::new("a.gen.go")).is_some());
    }

    #[test]
    fn a_deleted_key_falls_back_to_the_layer_below() {
        let mut layers = Layers::default();
        assert!(layers.set(Layer::Initial, &json!({"maxLines": 2, "exclude": ["*.gen.go"]})).is_empty());
        assert!(layers.set(Layer::Pushed, &json!({"multicoder": {"maxLines": 4, "maxTokens": 9}})).is_empty());
        assert!(layers.set(Layer::Pulled, &json!({"maxLines": 3, "enable": false})).is_empty());
        let seen = |layers: &Layers| {
            let settings = layers.settings();
            (settings.max_lines, settings.max_tokens, settings.enable)
        };
        assert_eq!(seen(&layers), (4, 9, false), "pushed over pulled over initial");
        layers.set(Layer::Pushed, &json!({"multicoder": {}}));
        assert_eq!(seen(&layers), (3, 64, false));
        layers.set(Layer::Pulled, &Value::Null);
        assert_eq!(seen(&layers), (2, 64, true));
        assert!(layers.settings().exclusions.excludes(Path::new("a.gen.go")).is_some());
        layers.set(Layer::Initial, &json!({}));
        assert_eq!(seen(&layers), (1, 64, true));
        assert!(layers.settings().exclusions.excludes(Path::new("a.gen.go")).is_none());
    }

    #[test]
    fn settings_of_other_servers_are_not_reported() {
        let mut layers = Layers::default();
        assert!(layers.set(Layer::Pushed, &json!({"rust-analyzer": {"check": {}}, "editor.tabSize": 4})).is_empty());
        assert!(layers.set(Layer::Pushed, &json!({"python": {}, "multicoder": {"maxLines": 3}})).is_empty());
        assert_eq!(layers.settings().max_lines, 3);
        assert_eq!(layers.set(Layer::Pushed, &json!({"python": {}, "multicoder": {"maxLine": 3}})).len(), 1);
        assert!(layers.set(Layer::Pulled, &json!({"enable": false})).is_empty(), "only what is set now is reported");
    }

    #[test]
    fn every_setting_is_documented() {
        let page = include_str!("../../docs/editors.md");
        for field in FIELDS {
            assert!(page.contains(&format!("\n| `{}` |", field.key)), "docs/editors.md has no row for {}", field.key);
        }
    }

    #[test]
    fn keys_are_sorted_and_unique() {
        assert!(FIELDS.windows(2).all(|pair| pair[0].key < pair[1].key));
    }
}
