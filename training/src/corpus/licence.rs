//! Licences: what a package says of itself, and which expressions a corpus may hold.

use std::fs;
use std::path::{Path, PathBuf};

use super::manifest::Source;
use super::{Error, Result};

/// SPDX identifiers (lower case) of licences that let a model be trained and shipped without conditions on the text.
#[rustfmt::skip]
const ALLOWED: &[&str] = &[
    "0bsd", "apache-1.1", "apache-2.0", "artistic", "artistic-1.0", "artistic-1.0-perl", "artistic-2.0", "blueoak-1.0.0",
    "boost", "bsd", "bsd-1-clause", "bsd-2-clause", "bsd-3-clause", "bsd-4-clause-uc", "bsl-1.0", "bzip2-1.0.6", "cc0-1.0", "curl", "expat",
    "hpnd", "ijg", "isc", "libpng", "libpng-2.0", "libtiff", "mit", "mit-0", "mit-cmu", "ms-pl", "ncsa", "openssl", "php-3.01", "postgresql", "psf-2.0",
    "public-domain", "python-2.0", "ruby", "tcl", "tcl-tk", "unicode-3.0", "unicode-dfs-2016", "unlicense", "upl-1.0", "vim",
    "w3c", "wtfpl", "x11", "zlib", "zpl-2.1",
];

/// Names in use that are not SPDX.
const SYNONYMS: &[(&str, &str)] = &[
    ("apache license 2.0", "apache-2.0"),
    ("apache license, version 2.0", "apache-2.0"),
    ("apache license version 2.0", "apache-2.0"),
    ("apache 2.0 license", "apache-2.0"),
    ("apache software license", "apache-2.0"),
    ("apache 2.0", "apache-2.0"),
    ("apache 2", "apache-2.0"),
    ("apache-2", "apache-2.0"),
    ("apache2", "apache-2.0"),
    ("apache", "apache-2.0"),
    ("mit license", "mit"),
    ("the mit license", "mit"),
    ("mit-style", "mit"),
    ("new bsd", "bsd-3-clause"),
    ("bsd license", "bsd"),
    ("bsd-3", "bsd-3-clause"),
    ("bsd-2", "bsd-2-clause"),
    ("bsd3", "bsd-3-clause"),
    ("bsd2", "bsd-2-clause"),
    ("3-clause bsd", "bsd-3-clause"),
    ("isc license (iscl)", "isc"),
    ("python software foundation license", "psf-2.0"),
    ("psf", "psf-2.0"),
    ("perl", "artistic"),
    ("public domain", "public-domain"),
];

/// The licences that a corpus may hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Further ones, lower case; empty for the permissive ones of the table only.
    more: Vec<String>,
}

impl Allowed {
    /// The permissive ones, and these (SPDX identifiers).
    ///
    /// # Errors
    /// A name that is no identifier.
    pub fn with(more: &[String]) -> Result<Self> {
        let good =
            |name: &&String| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-.+".contains(c));
        if let Some(wrong) = more.iter().find(|name| !good(name)) {
            return Err(Error::Client(format!("licence {wrong:?}: expected an SPDX identifier such as MPL-2.0")));
        }
        Ok(Self { more: more.iter().map(|name| name.to_lowercase()).collect() })
    }

    /// Whether `expression` (SPDX, or Debian's or a registry's older forms) permits use: of alternatives one must, of
    /// joint licences all must. Unknown names are not allowed.
    pub fn permits(&self, expression: &str) -> bool {
        let flat = expression.trim().to_lowercase().replace(['(', ')', '"'], " ");
        let flat = flat.split_whitespace().collect::<Vec<_>>().join(" ").replace(" and/or ", " or ");
        let flat = flat.replace('/', " or ");
        let joint =
            |alternative: &str| alternative.replace(", ", " and ").split(" and ").all(|name| self.permits_one(name));
        !flat.is_empty() && (self.permits_one(&flat) || flat.split(" or ").any(joint))
    }

    fn permits_one(&self, name: &str) -> bool {
        let whole = name.trim();
        let name = whole.split(" with ").next().unwrap_or(whole).trim().trim_end_matches('+').trim_end_matches('.');
        let name = SYNONYMS.iter().find(|(synonym, _)| *synonym == name).map_or(name, |(_, spdx)| spdx);
        ALLOWED.contains(&name) || self.more.iter().any(|more| more == name || more == whole)
    }

    /// Whether the head of a file puts that file under a licence that is not allowed (a GPL file in a permissive package,
    /// an SPDX tag of another kind).
    pub fn forbid(&self, head: &str) -> bool {
        if let Some(at) = head.find("SPDX-License-Identifier:") {
            let rest = head[at..].lines().next().unwrap_or_default();
            let expression = rest["SPDX-License-Identifier:".len()..].trim().trim_end_matches("*/");
            let expression = expression.trim_end_matches("-->").trim();
            return !expression.is_empty() && !expression.starts_with('$') && !self.permits(expression);
        }
        let lower = head.to_lowercase();
        let words = lower.split(|c: char| c.is_whitespace() || "#*/;-%\"".contains(c)).filter(|word| !word.is_empty());
        let flat = words.collect::<Vec<_>>().join(" ");
        let family = COPYLEFT.iter().find(|(phrase, _)| flat.contains(phrase)).map(|(_, family)| *family);
        let allowed = |family: &str| self.more.iter().any(|more| more.starts_with(family));
        family.is_some_and(|family| !allowed(family)) && !ALTERNATIVES.iter().any(|name| flat.contains(name))
    }
}

/// What heads of files say instead of a tag, and how the identifiers of these licences begin.
const COPYLEFT: &[(&str, &str)] = &[
    ("gnu lesser general public", "lgpl"),
    ("gnu affero", "agpl"),
    ("gnu general public license", "gpl"),
    ("mozilla public license", "mpl"),
];

/// Words of a head that offers another licence beside.
const ALTERNATIVES: &[&str] =
    &["artistic", "mit license", "bsd license", "apache license", "dual", "alternatively", "same terms as perl"];

/// Whether the permissive licences permit `expression`; [`Allowed::permits`] without further ones.
pub fn allowed(expression: &str) -> bool {
    Allowed::default().permits(expression)
}

/// The licence that an unpacked package states, as an SPDX-like expression.
pub fn of_package(source: Source, tree: &Path) -> Option<String> {
    let stated = match source {
        Source::Crate => field_of_toml(&find(tree, "Cargo.toml", 2)?),
        Source::Npm => field_of_json(&find(tree, "package.json", 2)?),
        Source::Pypi => find_metadata(tree).and_then(|path| field_of_metadata(&path)),
        Source::Deb => of_debian_copyright(tree),
        Source::Debsrc => None,
    };
    stated.or_else(|| of_licence_files(tree))
}

/// The first file called `name` at most `depth` folders down.
fn find(folder: &Path, name: &str, depth: usize) -> Option<PathBuf> {
    let here = folder.join(name);
    if here.is_file() {
        return Some(here);
    }
    if depth == 0 {
        return None;
    }
    sorted_entries(folder).iter().filter(|path| path.is_dir()).find_map(|path| find(path, name, depth - 1))
}

fn sorted_entries(folder: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder).map(|all| all.flatten().map(|e| e.path()).collect()).unwrap_or_default();
    entries.sort();
    entries
}

fn field_of_toml(path: &Path) -> Option<String> {
    let manifest: toml::Table = fs::read_to_string(path).ok()?.parse().ok()?;
    manifest.get("package")?.get("license")?.as_str().map(str::to_owned)
}

fn field_of_json(path: &Path) -> Option<String> {
    let json: serde_json::Value = serde_json::from_str(&fs::read_to_string(path).ok()?).ok()?;
    let plain = json["license"].as_str().or_else(|| json["license"]["type"].as_str());
    let plain = plain.or_else(|| json["licenses"][0]["type"].as_str())?;
    (!plain.starts_with("SEE ")).then(|| plain.to_owned())
}

fn find_metadata(tree: &Path) -> Option<PathBuf> {
    let info = sorted_entries(tree).into_iter().find(|path| path.extension().is_some_and(|e| e == "dist-info"));
    info.map(|path| path.join("METADATA")).or_else(|| find(tree, "PKG-INFO", 1))
}

/// `License-Expression`, else a short `License`, else the trove classifier.
fn field_of_metadata(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let head: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).collect();
    let field = |name: &str| head.iter().find_map(|line| line.strip_prefix(name)).map(str::trim);
    if let Some(expression) = field("License-Expression:") {
        return Some(expression.to_owned());
    }
    let classifier = head.iter().find_map(|line| line.strip_prefix("Classifier: License :: OSI Approved :: "));
    match field("License:") {
        Some(licence) if allowed(licence) => Some(licence.to_owned()),
        licence => classifier.or(licence).filter(|l| l.len() < 60).map(str::to_owned),
    }
}

/// The licence of `Files: *` in the machine-readable copyright file; else what its text says.
fn of_debian_copyright(tree: &Path) -> Option<String> {
    let docs = sorted_entries(&tree.join("usr/share/doc"));
    let text = docs.iter().find_map(|folder| fs::read_to_string(folder.join("copyright")).ok())?;
    let stanza = text.split("\n\n").find(|stanza| {
        stanza.lines().any(|line| line.strip_prefix("Files:").is_some_and(|f| f.split_whitespace().any(|p| p == "*")))
    });
    let stated = stanza.and_then(|stanza| stanza.lines().find_map(|line| line.strip_prefix("License:")));
    match stated.map(str::trim).filter(|l| !l.is_empty()) {
        Some(licence) => Some(licence.to_owned()),
        None => of_text(&text).map(str::to_owned),
    }
}

/// The licence texts at the top of a source tree.
fn of_licence_files(tree: &Path) -> Option<String> {
    let mut folders = vec![tree.to_owned()];
    folders.extend(sorted_entries(tree).into_iter().filter(|path| path.is_dir()));
    for folder in folders {
        let mut found = Vec::new();
        for path in sorted_entries(&folder) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
            let is_licence = ["licen", "copying", "copyright", "unlicense"].iter().any(|start| name.starts_with(start));
            if is_licence && path.is_file() {
                let text = fs::read(&path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
                found.extend(text.ok().and_then(|text| of_text(&text)));
            }
        }
        found.sort_unstable();
        found.dedup();
        if !found.is_empty() {
            return Some(found.join(" AND "));
        }
    }
    None
}

/// Phrases that tell a licence text, the telling ones first.
const PHRASES: &[(&str, &str)] = &[
    ("gnu affero general public license", "AGPL-3.0"),
    ("gnu lesser general public license", "LGPL"),
    ("gnu library general public license", "LGPL"),
    ("gnu general public license", "GPL"),
    ("mozilla public license", "MPL-2.0"),
    ("eclipse public license", "EPL"),
    ("european union public licence", "EUPL-1.2"),
    ("artistic license", "Artistic"),
    ("apache license", "Apache-2.0"),
    ("boost software license", "BSL-1.0"),
    ("postgresql license", "PostgreSQL"),
    ("permission to use, copy, modify, and/or distribute", "ISC"),
    ("permission to use, copy, modify, and distribute", "ISC"),
    ("permission is hereby granted, free of charge", "MIT"),
    ("neither the name", "BSD-3-Clause"),
    ("names of its contributors", "BSD-3-Clause"),
    ("redistribution and use in source and binary forms", "BSD-2-Clause"),
    ("this software is provided 'as-is', without any express", "Zlib"),
    ("this is free and unencumbered software", "Unlicense"),
    ("cc0 1.0 universal", "CC0-1.0"),
    ("mit license", "MIT"),
];

/// The licence that a text is, by the first phrase of the table that occurs in it.
pub fn of_text(text: &str) -> Option<&'static str> {
    let flat = text.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ");
    let flat = flat.replace('’', "'").replace(['*', '"'], "");
    PHRASES.iter().find(|(phrase, _)| flat.contains(phrase)).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions() {
        for good in [
            "MIT",
            "MIT OR Apache-2.0",
            "Apache-2.0 WITH LLVM-exception",
            "(MIT AND BSD-3-Clause)",
            "Expat",
            "Artistic or GPL-1+",
            "MIT/Apache-2.0",
            "GPL-1+ or Artistic",
            "Apache License, Version 2.0",
            "BSD License",
            "Unlicense OR MIT",
            "Zlib",
        ] {
            assert!(allowed(good), "{good}");
        }
        for bad in
            ["GPL-3.0-only", "MIT AND GPL-2+", "MPL-2.0", "", "BUSL-1.1", "LGPL-2.1 with exception", "UNLICENSED"]
        {
            assert!(!allowed(bad), "{bad}");
        }
    }

    #[test]
    fn heads_of_files() {
        let permissive = Allowed::default();
        assert!(permissive.forbid("// SPDX-License-Identifier: BUSL-1.1\ncontract A {}"));
        assert!(!permissive.forbid("// SPDX-License-Identifier: MIT\ncontract A {}"));
        let gpl = "/* This is free software under the terms of the GNU General\n * Public License */";
        assert!(permissive.forbid(gpl));
        let perl = "# under the same terms as Perl: GNU General Public License or the Artistic License";
        assert!(!permissive.forbid(perl) && !permissive.forbid("int main() {}"));
        assert!(!Allowed::with(&["GPL-3.0-only".to_owned()]).unwrap().forbid(gpl));
    }

    #[test]
    fn further_licences_are_named_by_the_user() {
        let more = Allowed::with(&["MPL-2.0".to_owned()]).unwrap();
        assert!(more.permits("MPL-2.0") && more.permits("mit and mpl-2.0") && !more.permits("GPL-3.0"));
        assert!(!Allowed::default().permits("MPL-2.0"));
        assert!(!more.forbid("// SPDX-License-Identifier: MPL-2.0"));
        let error = Allowed::with(&["all of them".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("expected an SPDX identifier"), "{error}");
    }

    #[test]
    fn packages_state_their_licence() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path();
        fs::create_dir(tree.join("package")).unwrap();
        fs::write(tree.join("package/package.json"), r#"{"license": "ISC"}"#).unwrap();
        assert_eq!(of_package(Source::Npm, tree).as_deref(), Some("ISC"));
        fs::create_dir_all(tree.join("usr/share/doc/x")).unwrap();
        let copyright = "Format: x\n\nFiles: *\nCopyright: me\nLicense: Expat\n\nFiles: debian/*\nLicense: GPL-2+\n";
        fs::write(tree.join("usr/share/doc/x/copyright"), copyright).unwrap();
        assert_eq!(of_package(Source::Deb, tree).as_deref(), Some("Expat"));
        fs::write(tree.join("package/LICENSE"), "Permission is hereby granted, free of charge, to any").unwrap();
        assert_eq!(of_package(Source::Debsrc, tree).as_deref(), Some("MIT"));
    }
}
