//! The repository's own text, for the suites that check its form.

use std::path::{Path, PathBuf};

/// One text file of the repository.
pub struct SourceFile {
    /// Path from the root, with `/`.
    pub path: String,
    pub text: String,
}

impl SourceFile {
    /// Is the file under `folder` (a path from the root)?
    pub fn is_under(&self, folder: &str) -> bool {
        self.path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
    }

    /// Lines with their one-based numbers.
    pub fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, line))
    }
}

/// Folders that hold nothing written by hand for this project; the last three are those that the README's commands make.
const SKIPPED_FOLDERS: &[&str] = &["target", ".git", "samples", "node_modules", "packages", "shards", "run"];

/// Every UTF-8 file below the root whose name ends with one of `extensions`, sorted by path.
pub fn files(root: &Path, extensions: &[&str]) -> Vec<SourceFile> {
    let mut found = Vec::new();
    visit(root, root, extensions, &mut found);
    found.sort_by(|left, right| left.path.cmp(&right.path));
    found
}

fn visit(root: &Path, folder: &Path, extensions: &[&str], found: &mut Vec<SourceFile>) {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for path in entries.map(|entry| entry.map(|entry| entry.path())).filter_map(Result::ok) {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if path.is_dir() {
            if !SKIPPED_FOLDERS.contains(&name.as_str()) {
                visit(root, &path, extensions, found);
            }
        } else if extensions.iter().any(|extension| name.ends_with(extension)) {
            found.extend(read(root, path));
        }
    }
}

fn read(root: &Path, path: PathBuf) -> Option<SourceFile> {
    let text = std::fs::read_to_string(&path).ok()?;
    let path = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().replace('\\', "/");
    Some(SourceFile { path, text })
}

/// A function as the formatter lays it out: from the line of its `fn` to the closing brace at the same indentation.
pub struct Function {
    pub name: String,
    pub line: usize,
    pub n_lines: usize,
}

/// The functions of a formatted Rust file. A one-line or bodiless function has `n_lines` 1.
pub fn functions(text: &str) -> Vec<Function> {
    let lines: Vec<&str> = text.lines().collect();
    let mut functions = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        let indentation = line.len() - line.trim_start().len();
        let closing = format!("{}}}", " ".repeat(indentation));
        let bodiless = line.trim_end().ends_with(['}', ';']);
        let length = lines[index..].iter().position(|line| line.trim_end() == closing);
        let n_lines = if bodiless { 1 } else { length.map_or(1, |length| length + 1) };
        functions.push(Function { name, line: index + 1, n_lines });
    }
    functions
}

fn function_name(line: &str) -> Option<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let keyword = words.iter().position(|word| *word == "fn")?;
    let qualifiers = ["pub", "pub(crate)", "pub(super)", "async", "const", "unsafe", "extern", "\"C\""];
    if !words[..keyword].iter().all(|word| qualifiers.contains(word)) {
        return None;
    }
    let name: String = words.get(keyword + 1)?.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn function_lengths_follow_indentation() {
        let text = "pub fn a() {\n    b();\n}\n\nimpl X {\n    fn b(\n        x: u32,\n    ) -> u32 {\n        x\n    }\n    fn c() {}\n}\n";
        let found: Vec<(String, usize)> = functions(text).into_iter().map(|f| (f.name, f.n_lines)).collect();
        assert_eq!(found, [("a".to_owned(), 3), ("b".to_owned(), 5), ("c".to_owned(), 1)]);
    }
}
