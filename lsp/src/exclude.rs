//! Files that are never completed, whatever else is configured: secrets, and what the user names.

use std::path::Path;

use glob::{MatchOptions, Pattern};

/// Patterns of files that hold secrets. One without a slash is matched against the file's name, another against its whole path.
pub const DEFAULT_PATTERNS: &[&str] = &[
    ".env*",
    "*.env",
    "*.pem",
    "*.key",
    "*.p12",
    "*.pfx",
    "*.p8",
    "*.der",
    "*.crt",
    "*.cer",
    "*.jks",
    "*.keystore",
    "*.kdb",
    "*.kdbx",
    "*.ppk",
    "*.asc",
    "*.gpg",
    "*.pgp",
    "*.age",
    "id_rsa*",
    "id_dsa*",
    "id_ecdsa*",
    "id_ed25519*",
    ".netrc",
    "_netrc",
    ".npmrc",
    ".pypirc",
    ".pgpass",
    ".htpasswd",
    ".git-credentials",
    ".dockercfg",
    "credentials",
    "credentials.json",
    "credentials.toml",
    "secrets.json",
    "secrets.yaml",
    "secrets.yml",
    "secrets.toml",
    "*.secret",
    "*.token",
    "*.tfvars",
    "*.tfstate",
    "service-account*.json",
    "known_hosts",
    "authorized_keys",
    "shadow",
    "**/.ssh/*",
    "**/.gnupg/**",
    "**/.aws/*",
    "**/.kube/config",
    "**/.docker/config.json",
];

const MATCH: MatchOptions =
    MatchOptions { case_sensitive: false, require_literal_separator: true, require_literal_leading_dot: false };

/// The compiled list.
#[derive(Clone, Debug, Default)]
pub struct Exclusions {
    patterns: Vec<Pattern>,
}

impl Exclusions {
    /// The default patterns, if `with_defaults`, and the user's.
    ///
    /// # Errors
    /// The pattern that is none, and why.
    pub fn new(with_defaults: bool, users: &[String]) -> Result<Exclusions, String> {
        let defaults = DEFAULT_PATTERNS.iter().filter(|_| with_defaults).copied();
        let compile = |text: &str| Pattern::new(&anchored(text)).map_err(|error| format!("{text:?}: {error}"));
        let patterns = defaults.chain(users.iter().map(String::as_str)).map(compile).collect::<Result<_, _>>()?;
        Ok(Exclusions { patterns })
    }

    /// The pattern that excludes the file at `path`, if one does.
    pub fn excludes(&self, path: &Path) -> Option<&str> {
        let whole = path.to_string_lossy().replace('\\', "/");
        let name = whole.rsplit('/').next().unwrap_or_default();
        let hit = |pattern: &&Pattern| {
            let subject = if pattern.as_str().contains('/') { whole.as_str() } else { name };
            pattern.matches_with(subject, MATCH)
        };
        self.patterns.iter().find(hit).map(Pattern::as_str)
    }
}

/// `pattern` as it is matched against a whole path: a relative one with a slash (`vendor/*.go`) holds in every folder, one that ends in
/// a slash (`vendor/`) for all that is in such a folder.
fn anchored(pattern: &str) -> String {
    let pattern = pattern.replace('\\', "/");
    if !pattern.contains('/') {
        return pattern;
    }
    let inside = if pattern.ends_with('/') { "**" } else { "" };
    let is_absolute = pattern.starts_with('/') || matches!(pattern.as_bytes(), [_, b':', ..]);
    if is_absolute || pattern.starts_with("**") {
        return pattern + inside;
    }
    format!("**/{}{inside}", pattern.trim_start_matches("./"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_relative_pattern_holds_in_every_folder() {
        let users = ["gen/*.go", "vendor/", "./a/b.py", "/abs/*.c", "**/x/*.h", "C:/w/*.c"].map(str::to_string);
        let exclusions = Exclusions::new(false, &users).unwrap();
        for path in ["/p/gen/x.go", "gen/x.go", "/p/vendor/a/b.js", "/q/a/b.py", "/abs/x.c", "/r/x/y.h", "C:\\w\\a.c"] {
            assert!(exclusions.excludes(Path::new(path)).is_some(), "{path}");
        }
        for path in ["/p/gen/deep/x.go", "/p/abs/x.c", "/p/vendor.js", "/p/ca/b.py"] {
            assert_eq!(exclusions.excludes(Path::new(path)), None, "{path}");
        }
    }

    #[test]
    fn certificates_and_key_stores_are_excluded_by_default() {
        let exclusions = Exclusions::new(true, &[]).unwrap();
        for end in ["crt", "cer", "der", "p12", "pfx", "key", "jks"] {
            assert!(exclusions.excludes(Path::new(&format!("/p/a.{end}"))).is_some(), "{end}");
        }
    }

    #[test]
    fn secrets_are_excluded_by_default() {
        let exclusions = Exclusions::new(true, &[]).unwrap();
        for path in [
            "/p/.env",
            "/p/.env.local",
            "/p/.envrc",
            "/p/prod.env",
            "/p/server.PEM",
            "/h/.ssh/config",
            "/h/.ssh/id_rsa",
            "id_ed25519",
            "/h/.aws/credentials",
            "/p/private.key",
            "/h/.npmrc",
            "C:\\p\\.env",
            "/h/.gnupg/a/b",
        ] {
            assert!(exclusions.excludes(Path::new(path)).is_some(), "{path}");
        }
        for path in [
            "/p/env.rs",
            "/p/environment.py",
            "/p/secrets.py",
            "/p/keys.rs",
            "/p/pem.go",
            "",
            "/p/monkey.c",
            "/p/id.rs",
        ] {
            assert_eq!(exclusions.excludes(Path::new(path)), None, "{path}");
        }
    }

    #[test]
    fn users_add_and_may_drop_the_defaults() {
        let users = ["**/vendor/**".to_string(), "*.min.js".to_string()];
        let exclusions = Exclusions::new(false, &users).unwrap();
        assert_eq!(exclusions.excludes(Path::new("/p/vendor/x/y.go")), Some("**/vendor/**"));
        assert_eq!(exclusions.excludes(Path::new("/p/a.min.js")), Some("*.min.js"));
        assert_eq!(exclusions.excludes(Path::new("/p/.env")), None);
    }

    #[test]
    fn a_bad_pattern_is_named() {
        assert!(Exclusions::new(true, &["a[".to_string()]).unwrap_err().contains("a["));
    }
}
