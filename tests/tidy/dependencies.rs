//! Who may import whom, and what must not be linked.

use multicoder_tests::repository_root;
use multicoder_tests::source::files;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// For each package, the packages of this workspace that it may name.
const ALLOWED: &[(&str, &[&str])] = &[
    ("multicoder-grammars", &[]),
    ("multicoder-model", &[]),
    ("multicoder-peers", &[]),
    ("multicoder-training", &["multicoder-grammars", "multicoder-model", "multicoder-peers"]),
    ("multicoder-lsp", &["multicoder-grammars", "multicoder-model", "multicoder-peers"]),
    ("multicoder-tests", &["multicoder-grammars", "multicoder-lsp", "multicoder-model", "multicoder-training"]),
];

/// Crates that open sockets or speak HTTP or TLS. None is linked into `multicoder-lsp`: source text stays on the machine.
const NETWORK_CRATES: &[&str] = &[
    "async-std",
    "attohttpc",
    "curl",
    "h2",
    "hf-hub",
    "hyper",
    "hyper-util",
    "isahc",
    "minreq",
    "mio",
    "native-tls",
    "openssl",
    "openssl-sys",
    "quinn",
    "reqwest",
    "rustls",
    "smol",
    "socket2",
    "surf",
    "tonic",
    "trust-dns-resolver",
    "tungstenite",
    "ureq",
    "websocket",
];

/// Words that only one package may say, and why.
const OWNED_WORDS: &[(&str, &[&str], &str)] = &[
    ("tower_lsp", &["lsp", "tests"], "only lsp/ names LSP types"),
    ("lsp_types", &["lsp", "tests"], "only lsp/ names LSP types"),
    ("candle_core", &["model", "training", "lsp", "tests", "fuzz"], "grammars/ has no tensors"),
    ("tree_sitter", &["grammars", "tests"], "only grammars/ knows the parser; the others ask SyntaxTree"),
    ("mpi::", &["training/src/parallel"], "only parallel/ talks to other ranks"),
    ("std::net", &[], "nothing here opens a socket"),
    ("tokio::net", &[], "nothing here opens a socket"),
];

fn cargo(arguments: &[&str]) -> String {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo).args(arguments).current_dir(repository_root()).output().expect("starting cargo");
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("cargo prints UTF-8")
}

/// Package name to the names of its direct dependencies of every kind (normal, dev, build).
fn direct_dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = cargo(&["metadata", "--no-deps", "--offline", "--format-version", "1"]);
    let metadata: serde_json::Value = serde_json::from_str(&metadata).expect("cargo metadata prints JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let name = |value: &serde_json::Value| value["name"].as_str().expect("a name").to_owned();
    let dependencies = |package: &serde_json::Value| {
        package["dependencies"].as_array().expect("dependencies").iter().map(name).collect::<BTreeSet<_>>()
    };
    packages.iter().map(|package| (name(package), dependencies(package))).collect()
}

#[test]
fn packages_import_only_downwards() {
    let direct = direct_dependencies();
    let listed: BTreeSet<&str> = ALLOWED.iter().map(|(package, _)| *package).collect();
    assert_eq!(direct.keys().map(String::as_str).collect::<BTreeSet<_>>(), listed, "packages of the workspace");
    for (package, allowed) in ALLOWED {
        let internal = direct[*package].iter().filter(|name| listed.contains(name.as_str()));
        let forbidden: Vec<_> = internal.filter(|name| !allowed.contains(&name.as_str())).collect();
        assert!(forbidden.is_empty(), "{package} may import {allowed:?} of this workspace, not {forbidden:?}");
    }
}

/// Name and enabled features of every crate linked into a package, from `cargo tree`.
fn linked(package: &str) -> Vec<(String, String)> {
    let tree = cargo(&["tree", "--offline", "-p", package, "-e", "normal", "--prefix", "none", "-f", "{p}|{f}"]);
    let crates = tree.lines().filter_map(|line| line.split_once('|'));
    crates.filter_map(|(name, features)| Some((name.split(' ').next()?.to_owned(), features.to_owned()))).collect()
}

#[test]
fn the_server_has_no_network_code() {
    let linked = linked("multicoder-lsp");
    let names: BTreeSet<&str> = linked.iter().map(|(name, _)| name.as_str()).collect();
    assert!(names.contains("tokio"), "cargo tree lists what is linked: {names:?}");
    let forbidden: Vec<_> = NETWORK_CRATES.iter().filter(|name| names.contains(*name)).collect();
    assert!(forbidden.is_empty(), "multicoder-lsp links {forbidden:?}; see `cargo tree -p multicoder-lsp -i NAME`");
    for (name, features) in linked.iter().filter(|(name, _)| name == "tokio") {
        let net = features.split(',').any(|feature| feature == "net" || feature == "full");
        assert!(!net, "{name} is linked with the feature `net` ({features})");
    }
}

#[test]
fn words_stay_with_their_owner() {
    let sources = files(&repository_root(), &[".rs"]);
    let mut errors = Vec::new();
    for (word, owners, reason) in OWNED_WORDS {
        let foreign = sources.iter().filter(|file| !owners.iter().any(|owner| file.is_under(owner)));
        for file in foreign.filter(|file| file.path != "tests/tidy/dependencies.rs") {
            let lines = file.lines().filter(|(_, line)| line.contains(word));
            errors.extend(lines.map(|(number, _)| format!("{}:{number}: `{word}`: {reason}", file.path)));
        }
    }
    assert!(errors.is_empty(), "\n{}", errors.join("\n"));
}
