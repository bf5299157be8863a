//! Golden cases of detection: shared extensions, `#!` lines, modelines, whole names, and what the editor says.

use std::path::Path;

use multicoder_grammars::{LanguageId, detect, detect_with_prior};

/// Path, content, language; an empty language means that none of the table fits.
#[rustfmt::skip]
const CASES: &[(&str, &str, &str)] = &[
    // Extensions that several languages share.
    ("include/list.h",    "struct list { int n; };\nvoid list_free(struct list *l);\n",                "c"),
    ("include/list.h",    "#include <vector>\nnamespace a { template <typename T> class List {}; }\n", "cpp"),
    ("App/View.h",        "#import <UIKit/UIKit.h>\n@interface View : UIView\n@end\n",                 "objectivec"),
    ("View.m",            "#import \"View.h\"\n@implementation View\n@end\n",                          "objectivec"),
    ("solve.m",           "% solves a system\nfunction x = solve(A, b)\n  x = A \\ b;\nend\n",          "matlab"),
    ("tool.pl",           "use strict;\nuse warnings;\nmy $x = shift;\nprint \"$x\\n\";\n",             "perl"),
    ("family.pl",         ":- module(family, [parent/2]).\nparent(tom, bob).\ngrand(X, Z) :- parent(X, Y), parent(Y, Z).\n", "prolog"),
    ("basic.t",           "use Test::More tests => 1;\nok(1, 'fine');\n",                              "perl"),
    ("basic.t",           "use v6;\nuse Test;\nplan 1;\n",                                             "raku"),
    ("app.ts",            "export const x: number = 1;\n",                                             "typescript"),
    ("app_de.ts",         "<?xml version=\"1.0\"?>\n<!DOCTYPE TS>\n<TS version=\"2.1\"></TS>\n",        "xml"),
    ("adder.v",           "module adder(input a, input b, output c);\n  assign c = a ^ b;\nendmodule\n", "verilog"),
    ("main.v",            "module main\n\nfn main() {\n\tprintln('hi')\n}\n",                          "vlang"),
    ("app.d",             "module app;\nimport std.stdio;\nvoid main() { writeln(\"hi\"); }\n",         "d"),
    ("Lib.fs",            "module Lib\n\nlet add x y = x + y\n",                                       "fsharp"),
    ("config.inc",        "<?php\nreturn ['a' => 1];\n",                                               "php"),
    ("set.ml",            "let rec mem x = function [] -> false | y :: r -> x = y || mem x r\n",        "ocaml"),
    ("script.sc",         "object A extends App { println(1) }\n",                                      "scala"),
    ("main.rs",           "fn main() { println!(\"hi\"); }\n",                                          "rust"),
    ("Program.cs",        "using System;\nclass Program { static void Main() {} }\n",                   "csharp"),
    ("index.php",         "<html><?php echo 1; ?></html>\n",                                            "php"),
    ("mod.r",             "f <- function(x) x + 1\n",                                                   "r"),
    ("mod.R",             "f <- function(x) x + 1\n",                                                   "r"),
    ("init.el",           "(setq x 1)\n",                                                               "emacslisp"),
    ("pack.lisp",         "(defpackage :a (:use :cl))\n(in-package :a)\n",                              "commonlisp"),
    ("query.sql",         "SELECT 1;\n",                                                                "sql"),
    ("View.tsx",          "export const View = () => <div />;\n",                                       "tsx"),
    // `#!` lines, in files without an extension and with a shared one.
    ("bin/serve",         "#!/usr/bin/env node\nconsole.log(1)\n",                                      "javascript"),
    ("bin/serve",         "#!/usr/bin/env -S node --harmony\nconsole.log(1)\n",                         "javascript"),
    ("bin/serve",         "#!/usr/bin/env -S deno run --allow-net\nconst x: number = 1\n",               "typescript"),
    ("bin/tool",          "#!/usr/bin/python3.12\nprint(1)\n",                                          "python"),
    ("bin/tool",          "#! /usr/bin/env FOO=1 -i python3\nprint(1)\n",                               "python"),
    ("bin/tool",          "#!/usr/bin/env -Slua5.4 -E\nprint(1)\n",                                     "lua"),
    ("bin/tool",          "#!/usr/bin/env -u HOME ruby\nputs 1\n",                                      "ruby"),
    ("bin/run",           "#!/bin/sh\nset -e\nls\n",                                                    "bash"),
    ("bin/run",           "#!/bin/sh\n# the next line restarts using tclsh \\\nexec tclsh \"$0\" \"$@\"\nputs 1\n", "tcl"),
    ("bin/run",           "#!/usr/bin/perl -w\nprint 1;\n",                                             "perl"),
    ("check.t",           "#!/usr/bin/env perl\nok 1;\n",                                               "perl"),
    ("rel",               "#!/usr/bin/env escript\nmain(_) -> ok.\n",                                   "erlang"),
    ("plot",              "#!/usr/bin/Rscript\nplot(1)\n",                                              "r"),
    ("prog",              "#!/no/such/interpreter\nx\n",                                                ""),
    // Modelines.
    ("notes",             "some words\n# vim: set ft=ruby :\n",                                         "ruby"),
    ("defs.h",            "// -*- C++ -*-\nint x;\n",                                                   "cpp"),
    ("rules.conf",        "# -*- mode: python -*-\nx = 1\n",                                            "python"),
    // Whole names and compound ones.
    ("Makefile",          "all:\n\tcc a.c\n",                                                           "make"),
    ("src/CMakeLists.txt", "project(a)\n",                                                              "cmake"),
    ("Dockerfile.test",   "FROM debian\n",                                                              "dockerfile"),
    ("Gemfile",           "source 'https://rubygems.org'\n",                                            "ruby"),
    ("Rakefile",          "task :default\n",                                                            "ruby"),
    ("BUILD.bazel",       "cc_library(name = \"a\")\n",                                                 "python"),
    ("build.gradle.kts",  "plugins { java }\n",                                                         "kotlin"),
    ("Jenkinsfile",       "pipeline { agent any }\n",                                                   "groovy"),
    ("my_app.app.src",    "{application, my_app, []}.\n",                                               "erlang"),
    ("SOLVE.F90",         "program solve\nend program\n",                                               "fortran"),
    ("data.unknownext",   "what is this\n",                                                             ""),
    ("README",            "Read me.\n",                                                                 "plaintext"),
];

#[test]
fn golden_cases() {
    let found = |path, text| detect(None, Path::new(path), text).map_or("", LanguageId::name);
    let wrong: Vec<String> = CASES
        .iter()
        .filter(|(path, text, expected)| found(path, text) != *expected)
        .map(|(path, text, expected)| format!("{path}: {:?}, not {expected:?}: {text:?}", found(path, text)))
        .collect();
    assert!(wrong.is_empty(), "{} of {} cases are wrong:\n{}", wrong.len(), CASES.len(), wrong.join("\n"));
}

#[test]
fn the_editor_is_believed_unless_it_knows_nothing() {
    let by_editor = |id, path| detect(Some(id), Path::new(path), "").map(LanguageId::name);
    assert_eq!(by_editor("python", "a.rs"), Some("python"));
    assert_eq!(by_editor("typescriptreact", "a.txt"), Some("tsx"));
    assert_eq!(by_editor("javascriptreact", "a"), Some("javascript"));
    assert_eq!(by_editor("c-sharp", "a"), Some("csharp"));
    assert_eq!(by_editor("sh", "a"), Some("bash"));
    assert_eq!(by_editor("plaintext", "a.rs"), Some("rust"));
    assert_eq!(by_editor("no-such-language", "a.rs"), Some("rust"));
    assert_eq!(by_editor("", "a.rs"), Some("rust"));
    assert_eq!(by_editor("plaintext", "a"), None);
}

#[test]
fn names_decide_where_there_is_no_content() {
    let expected = [("a.h", "c"), ("a.pl", "perl"), ("a.ts", "typescript"), ("a.v", "verilog"), ("a.ml", "ocaml")];
    let more = [("a.m", "objectivec"), ("a.fs", "fsharp"), ("a.t", "perl"), ("a.d", "d"), ("a.sc", "scala")];
    for (path, name) in expected.into_iter().chain(more) {
        assert_eq!(detect(None, Path::new(path), "").map(LanguageId::name), Some(name), "{path}");
        assert_eq!(detect(None, Path::new(path), "\n").map(LanguageId::name), Some(name), "{path} with a blank line");
    }
}

#[test]
fn a_prior_decides_only_what_content_leaves_open() {
    let with_prior = |path: &str, text: &str, prior: &str| {
        let prior = LanguageId::by_name(prior);
        detect_with_prior(None, Path::new(path), text, prior).map(LanguageId::name)
    };
    assert_eq!(with_prior("a.h", "#define N 1\n", "cpp"), Some("cpp"));
    assert_eq!(with_prior("a.h", "#define N 1\n", "c"), Some("c"));
    assert_eq!(with_prior("a.h", "#include <vector>\nclass A { public: int x; };\n", "c"), Some("cpp"));
    assert_eq!(with_prior("a.h", "#define N 1\n", "python"), Some("c"), "a prior without that extension");
    assert_eq!(with_prior("a.pl", "use strict;\nuse warnings;\n", "prolog"), Some("perl"));
    assert_eq!(with_prior("a.py", "x = 1\n", "cpp"), Some("python"));
}
