//! The files of a package in an order in which what a file imports comes before it, as far as its lines tell.
//!
//! `names` finds what a text imports, `index` says which files of the package that means, and here the files are put in order.
//! Names that mean nothing in the package (a standard library, another package) count for nothing. The work grows with the bytes
//! of the package, and with the number of names times the logarithm of the number of files.

mod index;
mod names;

use multicoder_grammars::LanguageId;

use index::Index;

/// The order of `files` (path inside the package with `/` between its parts, text, language), as their indices: every file once, and
/// each after the files that it imports. Files that import each other in a circle are taken in the order of their paths, and so are
/// files that nothing orders. The same files give the same order.
pub fn imports_first(files: &[(&str, &str, LanguageId)]) -> Vec<usize> {
    let mut by_path: Vec<usize> = (0..files.len()).collect();
    by_path.sort_by_key(|&file| (files[file].0, file));
    let index = Index::new(by_path.iter().map(|&file| (files[file].0, files[file].2)));
    let mut needs = Vec::with_capacity(index.n_nodes());
    for (rank, &file) in by_path.iter().enumerate() {
        let (_, text, language) = files[file];
        let names = names::imports(language, text);
        let mut needed: Vec<usize> = names.iter().flat_map(|import| index.resolve(rank, import)).collect();
        needed.sort_unstable();
        needed.dedup();
        needs.push(needed);
    }
    needs.extend(index.files_of_folders());
    let order = needed_first(&needs);
    order.into_iter().filter_map(|node| by_path.get(node).copied()).collect()
}

/// Nodes in an order in which each comes after those that it needs, but for circles; otherwise in their own order. A loop over a
/// stack and no recursion: a chain of imports may be as long as the package.
fn needed_first(needs: &[Vec<usize>]) -> Vec<usize> {
    let mut order = Vec::with_capacity(needs.len());
    let mut seen = vec![false; needs.len()];
    let mut path: Vec<(usize, usize)> = Vec::new();
    for start in 0..needs.len() {
        if !std::mem::replace(&mut seen[start], true) {
            path.push((start, 0));
        }
        while let Some((node, n_visited)) = path.last_mut() {
            match needs[*node].get(*n_visited) {
                Some(&needed) => {
                    *n_visited += 1;
                    if !std::mem::replace(&mut seen[needed], true) {
                        path.push((needed, 0));
                    }
                }
                None => {
                    order.push(*node);
                    path.pop();
                }
            }
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    /// The paths of a package in their order; files are written as path and text, their languages come from the names.
    fn order<'a>(files: &[(&'a str, &'a str)]) -> Vec<&'a str> {
        let language = |path| multicoder_grammars::detect(None, std::path::Path::new(path), "").expect(path);
        let files: Vec<_> = files.iter().map(|(path, text)| (*path, *text, language(path))).collect();
        imports_first(&files).into_iter().map(|file| files[file].0).collect()
    }

    #[test]
    fn python_modules_come_before_their_users() {
        let files = [
            ("pkg/__init__.py", "from .api import get\nimport os, json\n"),
            ("pkg/api.py", "from . import sessions\nfrom .utils import (\n    a,\n    b,\n)\n"),
            ("pkg/sessions.py", "import pkg.utils as u\nfrom pkg.core.wire import Wire\n"),
            ("pkg/utils.py", "x = 1  # from .api import nothing\n"),
            ("pkg/core/wire.py", ""),
        ];
        let expected = ["pkg/utils.py", "pkg/core/wire.py", "pkg/sessions.py", "pkg/api.py", "pkg/__init__.py"];
        let got = order(&files);
        let at = |path: &str| got.iter().position(|other| *other == path).expect(path);
        assert!(expected.windows(2).skip(1).all(|pair| at(pair[0]) < at(pair[1])), "{got:?}");
        assert!(at("pkg/utils.py") < at("pkg/sessions.py"), "{got:?}");
    }

    #[test]
    fn relative_names_of_javascript_and_typescript_are_found() {
        let files = [
            ("src/a.ts", "import { b } from './b.js';\nimport React from 'react';\n"),
            ("src/b.ts", "export * from './lib'\nconst y = require(\"../tools/z\")\n"),
            ("src/lib/index.ts", "import {\n  q,\n} from '@/util/q'\n"),
            ("src/react.ts", "import './a'"),
            ("src/util/q.tsx", ""),
            ("tools/z.js", ""),
        ];
        let expected = ["src/util/q.tsx", "src/lib/index.ts", "tools/z.js", "src/b.ts", "src/a.ts", "src/react.ts"];
        assert_eq!(order(&files), expected);
    }

    #[test]
    fn headers_come_before_what_includes_them() {
        let files = [
            ("include/net/wire.h", "#include <stdint.h>\n# include \"base.h\"\n"),
            ("include/net/base.h", ""),
            ("src/a.c", "#include \"a.h\"\n#include <net/wire.h>\n"),
            ("src/a.h", "#include \"../include/net/base.h\"\n"),
        ];
        assert_eq!(order(&files), ["include/net/base.h", "include/net/wire.h", "src/a.h", "src/a.c"]);
    }

    #[test]
    fn classes_packages_and_members_of_java_and_kotlin_are_found() {
        let files = [
            ("src/main/java/org/x/App.java", "package org.x;\nimport org.x.model.*;\nimport java.util.List;\n"),
            ("src/main/java/org/x/model/Item.java", "import static org.x.zed.Zed.ONE;\n"),
            ("src/main/java/org/x/zed/Zed.java", ""),
            ("src/main/kotlin/org/x/Main.kt", "import org.x.tools.helper\n"),
            ("src/main/kotlin/org/x/tools/Tools.kt", ""),
        ];
        let expected = ["Zed.java", "Item.java", "App.java", "Tools.kt", "Main.kt"];
        let got = order(&files);
        assert!(got.iter().zip(expected).all(|(path, end)| path.ends_with(end)), "{got:?}");
    }

    #[test]
    fn an_import_of_go_means_all_files_of_a_folder() {
        let files = [
            ("cmd/main.go", "package main\n\nimport (\n\t\"fmt\"\n\n\tw \"example.org/me/app/wire\"\n)\n"),
            ("wire/a.go", "package wire\n"),
            ("wire/b.go", "package wire\nimport \"example.org/me/app/zip\"\n"),
            ("zip/z.go", "package zip\n"),
        ];
        assert_eq!(order(&files), ["wire/a.go", "zip/z.go", "wire/b.go", "cmd/main.go"]);
    }

    #[test]
    fn modules_of_rust_are_found_from_above_and_from_below() {
        let files = [
            ("src/lib.rs", "mod wire;\npub mod net;\nmod tests {}\n"),
            ("src/net.rs", "pub(crate) mod socket;\nuse crate::wire::{Frame, Kind};\n"),
            ("src/net/poll.rs", ""),
            ("src/net/socket.rs", "use super::poll::Poll;\nuse std::io;\n"),
            ("src/wire/mod.rs", "use self::frame::Frame;\n"),
            ("src/wire/frame.rs", ""),
        ];
        let expected = [
            "src/net/poll.rs",
            "src/net/socket.rs",
            "src/wire/frame.rs",
            "src/wire/mod.rs",
            "src/net.rs",
            "src/lib.rs",
        ];
        let mut got = order(&files);
        assert_eq!(got.pop(), expected.last().copied());
        got.sort_by_key(|path| expected.iter().position(|other| other == path));
        assert_eq!(got, expected[..5]);
        let got = order(&files);
        let at = |path: &str| got.iter().position(|other| *other == path).expect(path);
        assert!(at("src/net/poll.rs") < at("src/net/socket.rs") && at("src/net/socket.rs") < at("src/net.rs"));
        assert!(at("src/wire/frame.rs") < at("src/wire/mod.rs") && at("src/wire/mod.rs") < at("src/net.rs"));
    }

    /// For each language, a file that needs `needed` and comes before it by its path.
    #[test]
    fn one_import_of_each_of_many_languages() {
        let rows = [
            ("a.rb", "require_relative 'lib/b_c'\n", "lib/b_c.rb"),
            ("a.lua", "local b = require \"lib.b\"\n", "lib/b.lua"),
            ("a.php", "<?php\nrequire_once(dirname(__FILE__) . '/lib/b.php');\n", "lib/b.php"),
            ("app/A.php", "<?php\nuse App\\Models\\User;\n", "app/Models/User.php"),
            ("a.pl", "use Foo::Bar qw(x);\n", "lib/Foo/Bar.pm"),
            ("lib/a.ex", "  alias MyApp.{Deep.UserName, Other}\n", "lib/my_app/deep/user_name.ex"),
            ("a.hs", "import qualified Data.Wire as W\n", "src/Data/Wire.hs"),
            ("a.ml", "let x = Wire.make ()\n", "wire.ml"),
            ("a.fs", "open Deep.Wire\n", "deep/Wire.fs"),
            ("a.R", "source('R/b.R')\n", "R/b.R"),
            ("a.zig", "const b = @import(\"b.zig\");\n", "b.zig"),
            ("a.d", "import deep.b, std.stdio;\n", "source/deep/b.d"),
            ("a.nim", "import std/[os, strutils], ./deep/b\n", "deep/b.nim"),
            ("a.erl", "-include(\"b.hrl\").\n", "include/b.hrl"),
            ("A.sol", "import {B} from \"./B.sol\";\n", "B.sol"),
            ("a.rkt", "(require racket/list\n         \"b.rkt\")\n", "b.rkt"),
            ("a.tcl", "source [file join $dir b.tcl]\n", "b.tcl"),
            ("a.sh", ". \"$DIR/lib/b.sh\"\n", "lib/b.sh"),
            ("a.prolog", ":- use_module(deep/b).\n", "deep/b.prolog"),
            ("a.cs", "using Deep.Wire;\n", "Deep/Wire/Frame.cs"),
            ("a.scala", "import org.x.{Frame, Kind}\n", "org/x/Frame.scala"),
            ("a.jl", "include(\"b.jl\")\n", "b.jl"),
            ("lib/a.dart", "import 'package:me/deep/b.dart';\n", "lib/deep/b.dart"),
            ("a.clj", "(ns a\n  (:require [deep.b :as b]))\n", "src/deep/b.clj"),
            ("a.proto", "import public \"deep/b.proto\";\n", "deep/b.proto"),
            ("a.scss", "@use 'deep/b';\n", "deep/b.scss"),
            ("a.el", "(require 'my-tools)\n", "my-tools.el"),
            ("a.cr", "require \"./deep/b\"\n", "deep/b.cr"),
            ("a.sv", "`include \"b.svh\"\n", "b.svh"),
            ("a.groovy", "import org.x.Wire\n", "org/x/Wire.groovy"),
            ("a.m", "#import \"b.h\"\n", "b.h"),
        ];
        for (user, text, needed) in rows {
            assert_eq!(order(&[(user, text), (needed, "")]), [needed, user], "{text}");
        }
    }

    #[test]
    fn a_circle_is_broken_where_it_began_and_keeps_what_is_outside_in_order() {
        let files = [
            ("a.py", "import b\n"),
            ("b.py", "import c\n"),
            ("c.py", "import a\nimport d\n"),
            ("d.py", ""),
            ("0.py", "import a\n"),
        ];
        assert_eq!(order(&files), ["d.py", "c.py", "b.py", "a.py", "0.py"]);
    }

    #[test]
    fn files_that_nothing_orders_keep_the_order_of_their_paths() {
        assert_eq!(
            order(&[("c.py", ""), ("a.json", "{}"), ("b.swift", "import Foundation\n")]),
            ["a.json", "b.swift", "c.py"]
        );
        assert!(order(&[]).is_empty());
    }

    /// A package of random folders, names and imports, some of them circular, of nothing or of themselves.
    fn random_package(rng: &mut Rng, n_files: usize) -> Vec<(String, String)> {
        let file = |rng: &mut Rng| format!("d{}/m{}", rng.below(3), rng.below(n_files));
        let package = (0..n_files).map(|_| {
            let names: Vec<String> = (0..rng.below(5)).map(|_| file(rng)).collect();
            let (path, extension) = (file(rng), ["py", "js", "c", "go", "rs", "ml"][rng.below(6)]);
            let line = |name: &String| match extension {
                "py" => format!("from {} import x\n", name.replace('/', ".")),
                "js" => format!("import x from '../{name}'\n"),
                "c" => format!("#include \"{name}.c\"\n"),
                "go" => format!("import \"x/{}\"\n", &name[..2]),
                "rs" => format!("use crate::{};\n", name.replace('/', "::")),
                _ => format!("open M{}\n", &name[4..]),
            };
            (format!("{path}.{extension}"), names.iter().map(line).collect())
        });
        package.collect()
    }

    #[test]
    fn every_order_is_a_permutation_and_always_the_same() {
        let mut rng = Rng::keyed(7, "order", &[]);
        for _ in 0..200 {
            let n_files = 1 + rng.below(30);
            let package = random_package(&mut rng, n_files);
            let language = |path: &str| multicoder_grammars::detect(None, std::path::Path::new(path), "").unwrap();
            let files: Vec<_> = package.iter().map(|(path, text)| (&**path, &**text, language(path))).collect();
            let order = imports_first(&files);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert!(sorted.iter().copied().eq(0..n_files), "{order:?}");
            assert_eq!(imports_first(&files), order);
            // Whatever the order in which the files are given, where no two have the same path.
            let reversed: Vec<_> = files.iter().rev().copied().collect();
            let paths = |files: &[(&str, &str, LanguageId)], order: Vec<usize>| -> Vec<String> {
                order.into_iter().map(|file| files[file].0.to_owned()).collect()
            };
            let mut distinct: Vec<&str> = files.iter().map(|file| file.0).collect();
            distinct.sort_unstable();
            distinct.dedup();
            if distinct.len() == files.len() {
                assert_eq!(paths(&reversed, imports_first(&reversed)), paths(&files, order));
            }
        }
    }

    #[test]
    fn a_large_package_takes_no_time_that_grows_with_its_square() {
        let python = LanguageId::by_name("python").unwrap();
        let name = |n: usize| format!("pkg/d{}/utils.py", n % 5_000);
        let texts: Vec<String> = (0..20_000)
            .map(|n| format!("import utils, os.path\nfrom pkg.d{}.utils import x\nfrom . import utils\n", n + 1))
            .collect();
        let paths: Vec<String> = (0..20_000).map(|n| if n < 5_000 { name(n) } else { format!("m{n}.py") }).collect();
        let files: Vec<_> = paths.iter().zip(&texts).map(|(path, text)| (&**path, &**text, python)).collect();
        let start = std::time::Instant::now();
        assert_eq!(imports_first(&files).len(), files.len());
        assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
    }
}
